"""Files that travel with a submitted job: the working folder as git sees it, without secrets.

Inside a git repository these are the tracked files and the untracked ones that `.gitignore` does not name, nested
repositories and submodules included. Elsewhere these are all files that are not hidden.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from txclf.core.errors import ConfigError

SECRETS = (
    *("*.key", "*.pem", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*"),
    *("id_ed25519*", ".env", ".env.*", "*.env", ".netrc", "_netrc", ".pgpass", ".htpasswd", ".git-credentials"),
    *(".pypirc", ".npmrc", ".dockercfg", ".vault-token", "kubeconfig", "*.kubeconfig", "credentials"),
    *("credentials.*", "*_credentials.json", "service-account*.json", "service_account*.json", "client_secret*.json"),
    *("secret", "secrets", "secrets.*", "token", "*.token", "*-token", "*_token", "*.ppk", "*.asc", "*.gpg"),
)
"""Names of files that usually hold a secret, in lower case."""
FOLDERS_OF_SECRETS = (".ssh", ".aws", ".azure", ".gnupg", ".kube", ".docker", ".ray", "gcloud")
EXAMPLES = ("*.example", "*.sample", "*.template", "*.dist", "*.pub")
"""Names of files that show the form of a secret only."""
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY")
MAX_NAMES = 5
"""Names in a message."""
SEARCHED_BYTES = 2**20
"""Maximum size of a file whose content is searched for keys and for the token of the cluster."""
NOT_SENT = (".gitignore", ".rayignore")
"""Files by which Ray would leave out further files; they have done their work."""


def stage(folder: Path, staging: Path, max_mb: float, allowed: Sequence[str] = ()) -> None:
    """Copy the files that travel from `folder` to `staging`, with their modes.

    `allowed` are names or globs, relative to the folder, of files that may travel although they look like secrets, and
    of links that lead out of the folder.

    Raises `ConfigError` that names the files if git fails, a file looks like a secret, a link leads out of the folder,
    or all files together exceed `max_mb`.
    """
    files = _followed(folder, sorted(set(_listed(folder))), allowed)
    files = {path: file for path, file in files.items() if path.name not in NOT_SENT}
    _refuse_secrets(files, allowed)
    sizes = {path: file.stat().st_size for path, file in files.items()}
    total = sum(sizes.values()) / 1e6
    if total > max_mb:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:5]
        names = ", ".join(f"{path} ({sizes[path] / 1e6:.0f} MB)" for path in largest)
        raise ConfigError(
            f"`{folder.resolve()}`: {total:.0f} MB would travel, the maximum is {max_mb:.0f} MB; the largest: {names}. "
            "Move them to storage that the cluster reaches, or list them in .gitignore."
        )
    for path, file in files.items():
        target = staging / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def _listed(folder: Path) -> Iterator[Path]:
    """Yield the files and links of a folder that may travel, relative to it."""
    if not any((parent / ".git").exists() for parent in (folder.resolve(), *folder.resolve().parents)):
        for path in folder.rglob("*"):
            names = path.relative_to(folder)
            if not any(name.startswith((".", "__py")) for name in names.parts) and (
                path.is_symlink() or path.is_file()
            ):
                yield names
        return
    for name in _git(folder, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split(b"\0"):
        path = Path(os.fsdecode(name))
        if not name:
            continue
        if (folder / path).is_dir() and not (folder / path).is_symlink():  # git lists another repository as one name
            if not (folder / path / ".git").exists():
                raise ConfigError(
                    f"`{folder / path}`: this submodule has not been fetched. Run `git submodule update --init`."
                )
            yield from (path / inner for inner in _listed(folder / path))
        else:
            yield path


def _git(folder: Path, *words: str) -> bytes:
    """Return the output of a git command. Raises `ConfigError` if it fails: then `.gitignore` cannot be followed."""
    where = f"`{folder.resolve()}` is in a git repository, but"
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], check=False, capture_output=True)
    except FileNotFoundError:
        raise ConfigError(
            f"{where} git is not installed, so ignored files would travel too. Install git, or submit from a copy "
            "without `.git`."
        ) from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise ConfigError(
            f"{where} git cannot list it, so ignored files would travel too: {reason}. Fix that (`git -C "
            f"{folder.resolve()} status` shows it whole), then submit again."
        )
    return done.stdout


def _followed(folder: Path, paths: Sequence[Path], allowed: Sequence[str]) -> dict[Path, Path]:
    """Return the file to copy for each path, with links followed."""
    files: dict[Path, Path] = {}
    root = folder.resolve()
    outward = []
    for path in paths:
        target = (folder / path).resolve()
        inside = target.is_relative_to(root)
        if not inside and not _allows(path, allowed):
            outward.append(f"`{path}` -> `{target}`")
        elif target.is_file():
            files[path] = target
        elif target.is_dir() and inside:  # a link to a folder whose files are in the list
            inner = target.relative_to(root)
            files |= {path / other.relative_to(inner): folder / other for other in paths if other.is_relative_to(inner)}
        elif target.is_dir():
            files |= {path / each.relative_to(target): each for each in target.rglob("*") if each.is_file()}
    if outward:
        raise ConfigError(
            f"links that lead out of `{root}`: {_some(outward)}. Remove them, or pass `--allow NAME` before the "
            "command to send what they lead to."
        )
    return {path: file for path, file in files.items() if file.is_file()}


def _refuse_secrets(files: dict[Path, Path], allowed: Sequence[str]) -> None:
    """Raise `ConfigError` that names the files that look like secrets."""
    token = _token()
    found = []
    for path, file in files.items():
        reason = _reason(path, file, token)
        if reason and not _allows(path, allowed):
            found.append(f"`{path}` ({reason})")
    if found:
        raise ConfigError(
            f"files that look like secrets would travel: {_some(found)}. Move them out of the folder, list them in "
            ".gitignore, or pass `--allow NAME` before the command."
        )


def _reason(path: Path, file: Path, token: bytes) -> str | None:
    """Return why a file looks like a secret, or None."""
    name = path.name.lower()
    if not any(fnmatch(name, pattern) for pattern in EXAMPLES):
        if any(fnmatch(name, pattern) for pattern in SECRETS):
            return "its name"
        if any(part.lower() in FOLDERS_OF_SECRETS for part in path.parts[:-1]):
            return "its folder"
    if file.stat().st_size <= SEARCHED_BYTES:
        content = file.read_bytes()
        if PRIVATE_KEY.search(content):
            return "a private key in it"
        if token and token in content:
            return "the token of the cluster in it"
    return None


def _token() -> bytes:
    """Return the token of the cluster, as Ray finds it; empty if there is none."""
    token = os.environ.get("RAY_AUTH_TOKEN", "").encode()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not token and path.is_file():
        token = path.read_bytes()
    return token.strip()


def _allows(path: Path, allowed: Sequence[str]) -> bool:
    """Return True if a path, one of its folders or its name is in a list of globs."""
    names = [path.name, *map(str, (path, *path.parents))]
    return any(fnmatch(name, pattern.rstrip("/")) for name in names for pattern in allowed)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
