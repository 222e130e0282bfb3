"""`txclf submit` and `txclf jobs`: a command run on a Ray cluster, by Ray's job API.

The working folder travels, as git sees it (`.gitignore` holds; outside of a repository, all but hidden files), and so
does this very txclf, so that the cluster needs its dependencies only. A token comes from `RAY_AUTH_TOKEN` or
`RAY_AUTH_TOKEN_PATH`, as for all of Ray, and stands in no command line and no log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from txclf import _version
from txclf.config import run_config
from txclf.core.errors import ClusterError, ConfigError

VERBS = ("train", "tune", "prepare", "evaluate", "predict", "check")
STOP_S = 120
"""Seconds that a job which is stopped has to save a checkpoint; Ray's default is 3."""
MOST_MB = 100.0
"""Size of a working folder above which it does not travel."""


def submit(address: str, verb: str, words: Sequence[str], folder: str = ".", most_mb: float = MOST_MB) -> str:
    """Starts `txclf VERB WORDS` on the cluster whose dashboard is at `address`; the job's id.

    For all verbs that take one, the first word is a run file: it is checked here, before anything travels. Raises
    `ConfigError` for a folder that is too large or a `storage` that would be lost with the job, and `ClusterError` for
    a cluster that does not answer or does not let us in.
    """
    if verb not in VERBS:
        raise ConfigError(f"`{verb}`: expected one of {', '.join(VERBS)}")
    words, name = list(words), words[0]
    with tempfile.TemporaryDirectory(prefix="txclf-submit-") as staging:
        _stage(Path(folder), Path(staging), most_mb)
        if verb in ("train", "tune", "prepare", "check"):
            overrides = [word for word in words[1:] if "=" in word and not word.startswith("-")]
            settings = run_config.read_settings(words[0], overrides)
            run = run_config.parse(settings, words[0])
            name, place = run.name, str(settings.get("storage", "runs"))
            if not ("://" in place or os.path.isabs(place)):
                raise ConfigError(
                    f"`storage: {place}` would lie in the job's own folder and be lost with it: "
                    "set `storage=` to a path that every node mounts, or to a URI such as s3://bucket/runs"
                )
            shutil.copyfile(words[0], Path(staging, "run.yaml"))
            words[0] = "run.yaml"
            if run.compute.address is None:
                words.append("compute.address=auto")
        return str(
            connect(address).submit_job(
                entrypoint=shlex.join(["python", "-m", "txclf", verb, *words]),
                runtime_env={
                    "working_dir": staging,
                    "py_modules": [os.path.dirname(_version.__file__)],
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)},
                },
                entrypoint_num_cpus=0,
                metadata={"run": name, "verb": verb},
            )
        )


def connect(address: str) -> Any:
    """A client of Ray's job API. Raises `ClusterError` when the cluster does not answer, or refuses us."""
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if known or Path("~/.ray/auth_token").expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read by Ray when it is imported
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)  # else it tells of each upload
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()
    except Exception as error:  # Ray raises RuntimeError, ConnectionError and its own for the same thing
        reason = str(error).strip().splitlines()[0]
        if "401" in str(error) or "403" in str(error) or "uthenticat" in str(error):
            raise ClusterError(
                f"`{address}` asks for a token that fits: set RAY_AUTH_TOKEN, or "
                "RAY_AUTH_TOKEN_PATH to a file that holds it"
            ) from None
        raise ClusterError(f"`{address}`: no Ray dashboard answers there: {reason}") from None
    return client


def status(client: Any, job: str) -> str:
    """The state of a job. Raises `ClusterError` when there is none of that id."""
    try:
        return str(client.get_job_status(job).value).lower()
    except RuntimeError:
        raise ClusterError(f"`{job}`: no such job: `txclf jobs list` names them") from None


def follow(client: Any, job: str, show: Callable[[str], None]) -> int:
    """Passes on the log of a job until it ends; its exit code (130 for one that was stopped)."""

    async def pass_on() -> None:
        async for text in client.tail_job_logs(job):
            show(text)

    asyncio.run(pass_on())
    info = client.get_job_info(job)
    if str(info.status.value) == "SUCCEEDED":
        return 0
    if str(info.status.value) == "STOPPED":
        return 130
    if info.driver_exit_code is None:
        show(f"{info.message}\n")
    return int(info.driver_exit_code or 1)


def _stage(folder: Path, staging: Path, most_mb: float) -> None:
    """Copies what is to travel. Raises `ConfigError` naming the largest files when it is too much."""
    files = [path for path in _listed(folder) if path.is_file()]
    sizes = {path: path.stat().st_size for path in files}
    total = sum(sizes.values()) / 1e6
    if total > most_mb:
        largest = sorted(files, key=lambda path: -sizes[path])[:5]
        told = ", ".join(f"{path.relative_to(folder)} ({sizes[path] / 1e6:.0f} MB)" for path in largest)
        raise ConfigError(
            f"`{folder.resolve()}`: {total:.0f} MB would travel, the most is {most_mb:.0f} MB; the largest: {told}. "
            "Keep data on storage that the cluster reaches, or name them in .gitignore"
        )
    for path in files:
        target = staging / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _listed(folder: Path) -> list[Path]:
    words = ["git", "-C", str(folder), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(words, check=False, capture_output=True) if shutil.which("git") else None
    if done and not done.returncode:
        return [folder / os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    parts = (path.relative_to(folder).parts for path in folder.rglob("*"))
    return [folder.joinpath(*names) for names in parts if not any(name.startswith((".", "__py")) for name in names)]
