"""`lease.json` of a folder that one process at a time may write: a run, a search, prepared data, parts of a prediction.

The process, called the driver, renews its lease from a thread. A lease that its holder stopped renewing has expired.
Its age is measured by the process that wants the folder, on its own clock, so the clocks of two machines need not
agree.
"""

from __future__ import annotations

import fcntl
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from txclf.core import storage
from txclf.core.errors import ConfigError, StorageError, TxclfError

FILE = "lease.json"
RENEW_S = 10.0
"""Seconds between two renewals."""
EXPIRES_S = 60.0
"""Seconds without a renewal after which a lease has expired."""
CLOCKS_S = 600.0
"""The same for a lease of another machine, by its wall clock: more than the clocks can differ."""
SETTLE_S = 2.0
"""Seconds after which the last of several simultaneous writers is certain, on storage without locks."""
POLL_S = 0.5


class Lease(BaseModel):
    """The driver of a folder, and the time of its last renewal."""

    id: str
    host: str
    machine: str
    """Identity of the running kernel and its process namespace; empty if unknown."""
    pid: int
    process: str
    """Start of the process in the kernel's clock, which tells it from a later one with the same pid."""
    since: float
    """Wall-clock time at which the driver started, in seconds."""
    renewed: float
    """Wall-clock time of the last renewal, in seconds."""

    @property
    def on_this_machine(self) -> bool:
        """True if the pid has a meaning here."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def ended(self) -> bool:
        """True if the process is known to have ended."""
        return self.on_this_machine and _process(self.pid) != self.process

    @property
    def expired(self) -> bool:
        """True if the holder stopped renewing it, as far as the wall clock shows."""
        return time.time() - self.renewed > (EXPIRES_S if self.on_this_machine else CLOCKS_S)


class Holding(NamedTuple):
    """A folder and the lease that this process, and the workers that it starts, write by."""

    folder: str
    id: str

    def require(self) -> None:
        """Raise `StorageError` if another process took the lease over; called before a write that must not mix."""
        holder = _read(self.folder)
        if holder is None or holder.id != self.id:
            raise _taken_over(self.folder, holder)

    def write(self, name: str, content: bytes) -> None:
        """Write a file into the folder, unless the lease has ended, such as that of a driver that has failed.

        Raises `StorageError` then.
        """
        with _locked(self.folder, create=False):
            self.require()
            storage.write_bytes(storage.join(self.folder, name), content)

    def discard(self) -> None:
        """End the lease and remove the folder, into which `write` of no other process writes any more."""
        with _locked(self.folder, create=False):
            self.require()
            storage.remove_file(storage.join(self.folder, FILE))
            storage.remove_folder(self.folder)


def require(folder: str) -> None:
    """Raise `StorageError` unless this process holds the lease of a folder; called as `Holding.require` is."""
    holder = _read(folder)
    pid = os.getpid()
    if holder is None or (holder.machine, holder.pid, holder.process) != (_machine(), pid, _process(pid)):
        raise _taken_over(folder, holder)


def _taken_over(folder: str, holder: Lease | None) -> StorageError:
    return StorageError(
        f"`{folder}`: this process stood still for so long that {_named(holder)} took its work over. "
        "Stop one of the two processes."
    )


@contextmanager
def held(
    folder: str,
    waiting: Callable[[str], None] = lambda note: None,
    patience_s: float = 0.0,
    *,
    work: str = "works in it",
    then: str = "pass --resume",
) -> Iterator[Holding]:
    """Hold the lease of a folder while the block runs.

    The lease of a process that ended is taken over. `patience_s` is how long a living driver may take to end.
    `waiting` receives a note, again and again, while this process waits to know whether the other driver still lives.
    `work` names what the driver does, and `then` what to do after its end, for the messages.

    Raises `ConfigError` if another driver holds the lease.
    """
    now = time.time()
    pid = os.getpid()
    lease = Lease(
        id=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=pid,
        process=_process(pid),
        since=now,
        renewed=now,
    )
    _take(_Wanted(folder, work, then, waiting, patience_s), lease)
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(folder, lease, ended), daemon=True)
    thread.start()
    try:
        yield Holding(folder, lease.id)
    finally:
        ended.set()
        thread.join()
        _release(folder, lease)


class _Wanted(NamedTuple):
    """Wish for the lease of a folder; the fields are the parameters of `held`."""

    folder: str
    work: str
    then: str
    waiting: Callable[[str], None]
    patience_s: float

    def refusal(self, holder: Lease) -> ConfigError:
        """Return the error for a folder whose driver lives."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
        return ConfigError(
            f"`{self.folder}`: process {holder.pid} on `{holder.host}` {self.work} since {since}. Wait for its end, "
            f"or stop it (`kill {holder.pid}` on `{holder.host}`), then {self.then}."
        )


def _take(wanted: _Wanted, lease: Lease) -> None:
    """Write the lease of this process once no other is valid."""
    while True:
        seen = _wait_until_free(wanted)
        with _locked(wanted.folder) as locked:
            if _read(wanted.folder) != seen:
                continue  # another process was faster
            _write(wanted.folder, lease)
        if not locked:
            time.sleep(SETTLE_S)
        holder = _read(wanted.folder)
        if holder is not None and holder.id == lease.id:
            return
        if holder is not None and not wanted.patience_s:
            raise wanted.refusal(holder)


def _wait_until_free(wanted: _Wanted) -> Lease | None:
    """Return the lease that is no longer valid, or None without one. Raises `ConfigError` if its holder lives."""
    folder, patience_s = wanted.folder, wanted.patience_s
    seen, start = _read(folder), time.monotonic()
    unchanged_since = start
    while seen is not None and not (seen.ended or seen.expired):
        if time.monotonic() - unchanged_since >= EXPIRES_S:
            break
        lives = seen.on_this_machine or unchanged_since > start
        if lives and time.monotonic() - start >= patience_s:
            raise wanted.refusal(seen)
        wanted.waiting(
            f"`{folder}`: waiting for {_named(seen)}, which {wanted.work}"
            if patience_s == math.inf
            else f"`{folder}`: waiting up to {max(EXPIRES_S, patience_s):.0f} s to see whether {_named(seen)} still "
            f"{wanted.work}"
        )
        time.sleep(POLL_S)
        now = _read(folder)
        unchanged_since = unchanged_since if now == seen else time.monotonic()
        seen = now
    return seen


def _named(holder: Lease | None) -> str:
    return f"process {holder.pid} on `{holder.host}`" if holder else "another process"


def _renew(folder: str, lease: Lease, ended: threading.Event) -> None:
    """Renew the lease until the end of the block, or until another process took it over."""
    while not ended.wait(RENEW_S):
        with suppress(TxclfError, OSError), _locked(folder, create=False):  # storage may be away for a while
            holder = _read(folder)
            if holder is None or holder.id != lease.id:
                return  # what this process writes from now on is refused (`Holding.require`)
            _write(folder, lease.model_copy(update={"renewed": time.time()}))


def _release(folder: str, lease: Lease) -> None:
    """Remove the lease if it is still that of this process."""
    with suppress(TxclfError, OSError):  # a full or lost disk has its own message, and the lease expires
        if not storage.exists(folder):
            return
        with _locked(folder, create=False):
            holder = _read(folder)
            if holder is not None and holder.id == lease.id:
                storage.remove_file(storage.join(folder, FILE))
                if storage.is_local(folder):
                    storage.local_path(folder).rmdir()  # only if nothing else was written, or all of it was removed


def _read(folder: str) -> Lease | None:
    """Return the lease of a folder, or None if there is none that can be read."""
    path = storage.join(folder, FILE)
    try:
        return Lease.model_validate_json(storage.read_bytes(path)) if storage.exists(path) else None
    except ValidationError:  # written by another version, or damaged
        return None
    except StorageError:
        if storage.exists(path):
            raise
        return None  # removed since


def _write(folder: str, lease: Lease) -> None:
    storage.write_bytes(storage.join(folder, FILE), lease.model_dump_json(indent=2).encode() + b"\n")


@contextmanager
def _locked(folder: str, create: bool = True) -> Iterator[bool]:
    """Lock a local folder against other processes while the block runs; yields False where there are no such locks.

    A folder that is missing is made with `create`, and not locked without.
    """
    descriptor = _lock(storage.local_path(folder), create) if storage.is_local(folder) else None
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(path: Path, create: bool) -> int | None:
    """Lock a folder; return the descriptor that holds the lock, or None where folders cannot be locked."""
    while create or path.is_dir():
        descriptor = -1
        try:
            if create:
                path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass  # the last driver removed the folder meanwhile
        except OSError:  # network file systems lock no folders; a folder that cannot be written fails in the block
            if descriptor >= 0:
                os.close(descriptor)
            return None
        if descriptor >= 0:
            os.close(descriptor)
    return None


def _machine() -> str:
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _process(pid: int) -> str:
    """Return the start of a living process in the kernel's clock, or an empty string."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] not in "ZX":
            return fields[19]
    return ""
