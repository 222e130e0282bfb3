"""Names of runs whose run file has none: the stem of the run file and a number, such as `trec-2`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from txclf.artifacts import run_folder
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError


@contextmanager
def named(run: RunConfig, run_file: str, resume: bool, *, is_search: bool = False) -> Iterator[RunConfig]:
    """Yield a run with a name: its own, or the next number of its run file; with `resume` the last run, or search.

    The folder of a new number is created, so two processes never get the same one, and removed after the block if
    nothing was written. An object store has no such folders: there the lease of the run refuses the second process.

    Raises `ConfigError` if there is no run to resume.
    """
    if "name" in run.model_fields_set:
        yield run
        return
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(run_file).stem).lstrip("._-") or "run"
    if resume:
        wanted = "search" if is_search else "run"
        begun = [number for number in _numbers(run, stem) if run_folder.kind(_path(run, stem, number)) == wanted]
        if not begun:
            raise ConfigError(
                f"`{run.storage}`: no {wanted} `{stem}-N` to resume. Start it without --resume, or set `name`."
            )
        yield _renamed(run, stem, max(begun))
        return
    storage.require_writable(run.storage)
    number = 1 + max(_numbers(run, stem), default=0)
    while not _create(_path(run, stem, number)):
        number += 1
    try:
        yield _renamed(run, stem, number)
    finally:
        if storage.is_local(run.storage):
            with suppress(OSError):  # not empty
                storage.local_path(_path(run, stem, number)).rmdir()


def _numbers(run: RunConfig, stem: str) -> list[int]:
    """Return the numbers that are taken."""
    found = (re.fullmatch(rf"{re.escape(stem)}-([0-9]{{1,9}})", name) for name in storage.list_folder(run.storage))
    return [int(match[1]) for match in found if match]


def _create(folder: str) -> bool:
    """Create a folder; return False if it exists."""
    if not storage.is_local(folder):
        return True
    try:
        storage.local_path(folder).mkdir()
    except FileExistsError:
        return False
    return True


def _path(run: RunConfig, stem: str, number: int) -> str:
    return storage.join(run.storage, f"{stem}-{number}")


def _renamed(run: RunConfig, stem: str, number: int) -> RunConfig:
    return run.model_copy(update={"name": f"{stem}-{number}"})
