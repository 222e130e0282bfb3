"""What travels with a job: the files that git lists, no secrets, nothing from outside of the folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from txclf.core.errors import ConfigError
from txclf.launch import working_folder

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the settings and the token of the user who runs the tests."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def write(folder: Path, *names: str, content: str = "text") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def repository(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


def sent(folder: Path, allowed: Sequence[str] = (), max_mb: float = 10) -> list[str]:
    staging = folder.parent / f"staging-{len(os.listdir(folder.parent))}"
    working_folder.stage(folder, staging, max_mb, allowed)
    return sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())


def test_stage_in_a_repository_sends_what_git_lists(tmp_path: Path) -> None:
    folder = repository(tmp_path / "here")
    write(folder, "run.yaml", "new.csv", "data/ignored.csv", "runs/x/model.json", "scripts/go.sh")
    write(folder, ".gitignore", content="data/\nruns/\n")
    (folder / "scripts/go.sh").chmod(0o755)
    subprocess.run(["git", "-C", str(folder), "add", "run.yaml"], check=True)
    assert sent(folder) == ["new.csv", "run.yaml", "scripts/go.sh"]
    assert next(tmp_path.glob("staging-*/scripts/go.sh")).stat().st_mode & 0o777 == 0o755
    assert sent(folder / "scripts") == ["go.sh"]


def test_stage_outside_of_a_repository_sends_what_is_not_hidden(tmp_path: Path) -> None:
    write(tmp_path / "here", "run.yaml", "a/b.csv", ".hidden", ".cache/x", "__pycache__/y.pyc")
    assert sent(tmp_path / "here") == ["a/b.csv", "run.yaml"]


def test_stage_where_git_fails_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = repository(tmp_path / "here")
    write(folder, ".gitignore", content="ignored.csv\n")
    write(folder, "run.yaml", "ignored.csv")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for "dubious ownership"
    with pytest.raises(ConfigError, match=r"ignored files would travel too: .*dubious ownership"):
        sent(folder)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="git is not installed, so ignored files would travel too"):
        sent(folder)


def test_stage_sends_nested_repositories(tmp_path: Path) -> None:
    folder = repository(tmp_path / "here")
    nested = repository(folder / "nested")
    write(folder, "run.yaml")
    write(nested, "code.py", "skipped.csv")
    write(nested, ".gitignore", content="skipped.csv\n")
    assert sent(folder) == ["nested/code.py", "run.yaml"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (".env", "A=1", "its name"),
        (".env.production", "A=1", "its name"),
        ("deploy/id_ed25519", "x", "its name"),
        ("certificates/Server.PEM", "x", "its name"),
        ("token", "x", "its name"),
        ("credentials.json", "{}", "its name"),
        (".ssh/config", "x", "its folder"),
        ("notes.txt", KEY, "a private key in it"),
        ("notes.md", "call it with 0123456789abcdef", "the token of the cluster in it"),
    ],
)
def test_stage_file_that_looks_like_a_secret_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, reason: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef")
    folder = repository(tmp_path / "here")
    write(folder, "run.yaml", "tokenizer.json", ".env.example", "id_rsa.pub", "tokens.csv", "keys.txt")
    write(folder, name, content=content)
    with pytest.raises(ConfigError, match=rf"look like secrets would travel: `{name}` \({reason}\)\. .*--allow NAME"):
        sent(folder)
    assert name in sent(folder, allowed=[name])
    write(folder, ".gitignore", content=f"/{name}\n")
    assert name not in sent(folder)


def test_stage_token_of_the_guide_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = repository(tmp_path / "here")
    write(folder, "mine.txt", content="fedcba9876543210\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "mine.txt"))
    with pytest.raises(ConfigError, match="the token of the cluster in it"):
        sent(folder)


@pytest.mark.parametrize("is_repository", [True, False])
def test_stage_links(tmp_path: Path, is_repository: bool) -> None:
    folder = repository(tmp_path / "here") if is_repository else tmp_path / "here"
    write(folder, "run.yaml", "data/a.csv")
    write(tmp_path, "private/secret.txt", "one.csv")
    (folder / "inside.yaml").symlink_to("run.yaml")
    (folder / "latest").symlink_to("data")
    (folder / "broken").symlink_to("nothing")
    assert sent(folder) == ["data/a.csv", "inside.yaml", "latest/a.csv", "run.yaml"]
    (folder / "out.csv").symlink_to(tmp_path / "one.csv")
    (folder / "home").symlink_to(tmp_path / "private")
    with pytest.raises(ConfigError, match=r"links that lead out of `.*`: `home` -> `.*private`, `out\.csv` -> "):
        sent(folder)
    everything = ["data/a.csv", "home/secret.txt", "inside.yaml", "latest/a.csv", "out.csv", "run.yaml"]
    assert sent(folder, allowed=["home", "*.csv"]) == everything


def test_stage_large_folder_raises_with_its_largest_files(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    write(folder, "small.csv")
    write(folder, "data/large.csv", content="x" * 3_000_000)
    with pytest.raises(ConfigError, match=r"3 MB would travel, .* is 2 MB; the largest: data/large\.csv \(3 MB"):
        sent(folder, max_mb=2)
