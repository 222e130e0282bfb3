"""`txclf submit` and `txclf jobs`: commands run on a Ray cluster through Ray's job API.

A job uploads the working folder (`working_folder.py`) and this version of txclf, so that the cluster needs only its
dependencies. The token comes from `RAY_AUTH_TOKEN` or `RAY_AUTH_TOKEN_PATH`, as everywhere in Ray, and appears in no
command line and no log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from txclf import _version
from txclf.config import run_config
from txclf.core import storage
from txclf.core.errors import ClusterError, ConfigError
from txclf.launch import working_folder
from txclf.launch.verbs import RUN_FILE_AT, RUN_FILE_FOLDER, VERBS

STOP_S = 120
"""Maximum seconds for a stopped job to save a checkpoint; Ray's default is 3."""
MAX_MB = 100.0
"""Maximum size of an uploaded working folder, in MB."""
INTERPRETER = (
    r"p=$(sed -n 's|^[^/]*\(/.*\)/lib/python[^/]*/site-packages/ray/_raylet\.so$|\1/bin/python|p' "
    r'"/proc/$PPID/maps" 2>/dev/null | head -n 1); [ -x "$p" ] || p=python; exec "$p"'
)
"""Shell words that run the interpreter of the environment that the node's Ray is installed in.

Its parent is a process of Ray, which has Ray's library mapped into memory. `python` of the node's PATH may be another
one, if Ray was started without activating its environment; it is the fallback, for example on macOS.
"""


def submit(
    address: str,
    verb: str,
    words: Sequence[str],
    folder: str = ".",
    *,
    allowed: Sequence[str] = (),
) -> str:
    """Start `txclf VERB WORDS` on the cluster whose dashboard is at `address` and return the job's id.

    The run file of a verb is checked before anything is uploaded. `allowed` are files and links that travel although
    `working_folder.stage` would refuse them.

    Raises `ConfigError` if the folder cannot be sent as it is, a word holds credentials or `storage` would be lost with
    the job, and `ClusterError` if the cluster does not answer or refuses the token.
    """
    if verb not in VERBS:
        raise ConfigError(f"`{verb}`: expected one of {', '.join(VERBS)}")
    words, name = list(words), words[0]
    for word in words:
        storage.refuse_credentials(word)
    at = RUN_FILE_AT.get(verb)
    if at is not None and len(words) <= at:
        raise ConfigError(f"`{verb}`: no run file. See `txclf {verb} --help`.")
    if verb == "predict":
        _require_kept(words)
    with tempfile.TemporaryDirectory(prefix="txclf-submit-") as staging:
        working_folder.stage(Path(folder), Path(staging), MAX_MB, allowed)
        if at is not None:
            overrides = [word for word in words[at + 1 :] if "=" in word and not word.startswith("-")]
            settings = run_config.read_settings(words[at], overrides)
            run = run_config.parse(settings, words[at])
            name, path = run.name, str(settings.get("storage", "runs"))
            _require_outside(f"storage: {path}", path, "`storage=`")
            run_file = storage.join(RUN_FILE_FOLDER, os.path.basename(words[at]))  # its name is that of the run
            storage.write_bytes(storage.join(staging, run_file), storage.read_bytes(words[at]))
            words[at] = run_file
            if run.compute.address is None:
                words.append("compute.address=auto")
        return str(
            connect(address).submit_job(
                entrypoint=entrypoint([verb, *words]),
                runtime_env={
                    "working_dir": staging,
                    "py_modules": [os.path.dirname(_version.__file__)],
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)},
                },
                entrypoint_num_cpus=0,
                metadata={"run": name, "verb": verb},
            )
        )


def _require_kept(words: Sequence[str]) -> None:
    """Raise `ConfigError` if the output of a prediction would be lost with the job."""
    for number, word in enumerate(words):
        name, is_joined, path = word.partition("=")
        if name == "--out":
            path = path if is_joined else words[number + 1] if number + 1 < len(words) else ""
            _require_outside(f"--out {path}", path, "it")


def _require_outside(setting: str, path: str, what: str) -> None:
    if "://" not in path and not os.path.isabs(path):
        raise ConfigError(
            f"`{setting}` would lie in the job's own folder and be lost with it. "
            f"Set {what} to a path that every node mounts, or to a URI such as s3://bucket/runs."
        )


def entrypoint(words: Sequence[str]) -> str:
    """Return the shell command by which a job runs `txclf` with these words."""
    return f"{INTERPRETER} {shlex.join(['-m', 'txclf', *words])}"


def connect(address: str) -> Any:
    """Return a client of Ray's job API. Raises `ClusterError` if the cluster does not answer or refuses the token."""
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if known or Path("~/.ray/auth_token").expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read by Ray when it is imported
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)  # otherwise it logs each upload
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()
    except Exception as error:  # Ray raises RuntimeError, ConnectionError or its own errors
        reason = str(error).strip().splitlines()[0]
        if "401" in str(error) or "403" in str(error) or "uthenticat" in str(error):
            raise ClusterError(
                f"`{address}` needs the token of the cluster. Set RAY_AUTH_TOKEN, or "
                "RAY_AUTH_TOKEN_PATH to a file that holds it."
            ) from None
        raise ClusterError(f"`{address}`: no Ray dashboard answers there: {reason}. Check the address.") from None
    return client


def status(client: Any, job: str) -> str:
    """Return the state of a job. Raises `ClusterError` if no job has this id."""
    try:
        return str(client.get_job_status(job).value).lower()
    except RuntimeError:
        raise ClusterError(f"`{job}`: no such job. List the jobs with `txclf jobs list`.") from None


def follow(client: Any, job: str, show: Callable[[str], None]) -> int:
    """Pass the log of a job to `show` until it ends and return its exit code (130 for a stopped job).

    Raises `ClusterError` if the connection breaks.
    """
    from aiohttp import ClientError

    broken = (RuntimeError, OSError, ClientError)  # of Ray, requests and aiohttp

    async def pass_on() -> bool:
        texts = aiter(client.tail_job_logs(job))
        while True:
            try:
                text = await anext(texts)
            except StopAsyncIteration:
                return True
            except broken:
                return False
            show(text)

    info = None
    if asyncio.run(pass_on()):
        with suppress(*broken):
            info = client.get_job_info(job)
    if info is None or not info.status.is_terminal():
        raise ClusterError(
            f"`{job}`: the connection to the cluster broke. The job goes on: `txclf jobs logs {job}` with the same "
            "--address shows it."
        )
    if str(info.status.value) == "SUCCEEDED":
        return 0
    if str(info.status.value) == "STOPPED":
        return 130
    if info.driver_exit_code is None:
        show(f"{info.message}\n")
    code = int(info.driver_exit_code or 1)
    return code if code > 0 else 128 - code  # of a process that a signal killed, as a shell has it
