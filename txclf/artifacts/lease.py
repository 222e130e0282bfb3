"""`lease.json` of a run or search folder: the driver that works in it, so that a second one is refused.

The driver renews its lease from a thread. A lease that its holder stopped renewing has expired. Its age is measured by
the process that wants the folder, on its own clock, so the clocks of two machines need not agree.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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


@contextmanager
def held(folder: str, waiting: Callable[[str], None] = lambda note: None, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lease of a folder while the block runs.

    The lease of a process that ended is taken over. `patience_s` is how long a living driver may take to end.
    `waiting` receives a note, again and again, while this process waits to know whether the other driver still lives.

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
    _take(folder, lease, waiting, patience_s)
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(folder, lease, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _release(folder, lease)


def require_free(folder: str) -> None:
    """Raise `ConfigError` if another driver holds the lease of a folder. Waits where that is not known at once."""
    _wait_until_free(folder, lambda note: None, 0.0)


def _take(folder: str, lease: Lease, waiting: Callable[[str], None], patience_s: float) -> None:
    """Write the lease of this process once no other is valid."""
    while True:
        seen = _wait_until_free(folder, waiting, patience_s)
        with _locked(folder) as locked:
            if _read(folder) != seen:
                continue  # another process was faster
            _write(folder, lease)
        if not locked:
            time.sleep(SETTLE_S)
        holder = _read(folder)
        if holder is None or holder.id == lease.id:
            return
        raise _refusal(folder, holder)


def _wait_until_free(folder: str, waiting: Callable[[str], None], patience_s: float) -> Lease | None:
    """Return the lease that is no longer valid, or None without one. Raises `ConfigError` if its holder lives."""
    seen, start = _read(folder), time.monotonic()
    unchanged_since = start
    while seen is not None and not (seen.ended or seen.expired):
        if time.monotonic() - unchanged_since >= EXPIRES_S:
            break
        lives = seen.on_this_machine or unchanged_since > start
        if lives and time.monotonic() - start >= patience_s:
            raise _refusal(folder, seen)
        waiting(
            f"`{folder}`: waiting up to {max(EXPIRES_S, patience_s):.0f} s to see whether process {seen.pid} on "
            f"`{seen.host}` still works in it"
        )
        time.sleep(POLL_S)
        now = _read(folder)
        unchanged_since = unchanged_since if now == seen else time.monotonic()
        seen = now
    return seen


def _refusal(folder: str, holder: Lease) -> ConfigError:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
    return ConfigError(
        f"`{folder}`: process {holder.pid} on `{holder.host}` works in it since {since}. Wait for its end, or stop it "
        f"(`kill {holder.pid}` on `{holder.host}`), then pass --resume."
    )


def _renew(folder: str, lease: Lease, ended: threading.Event) -> None:
    """Renew the lease until the end of the block, or until another process took it over."""
    while not ended.wait(RENEW_S):
        with suppress(TxclfError, OSError):  # storage may be away for a while
            holder = _read(folder)
            if holder is None or holder.id != lease.id:
                return  # the checkpoints of this attempt are refused (`attempts.require_current`)
            if not ended.is_set():
                _write(folder, lease.model_copy(update={"renewed": time.time()}))


def _release(folder: str, lease: Lease) -> None:
    """Remove the lease if it is still that of this process."""
    with suppress(TxclfError, OSError):  # a full or lost disk has its own message, and the lease expires
        holder = _read(folder)
        if holder is not None and holder.id == lease.id:
            storage.remove_file(storage.join(folder, FILE))
            if storage.is_local(folder):
                storage.local_path(folder).rmdir()  # only if a check failed before the first file was written


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
def _locked(folder: str) -> Iterator[bool]:
    """Lock a local folder against other processes while the block runs; yields False where there are no such locks."""
    if not storage.is_local(folder):
        yield False
        return
    path, descriptor, locked = storage.local_path(folder), -1, False
    with suppress(OSError):  # network file systems lock no folders; a folder that cannot be written fails in the block
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        locked = True
    try:
        yield locked
    finally:
        if descriptor >= 0:
            os.close(descriptor)


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
