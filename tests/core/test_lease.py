"""Leases of a folder: real processes that hold them, are killed, stop renewing, or ask at the same moment."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from txclf.core import lease
from txclf.core.errors import ConfigError, StorageError

HOLD = """
import sys, time
from txclf.core import lease
from txclf.core.errors import ConfigError, StorageError
lease.RENEW_S = 0.2
print("ready", flush=True)
sys.stdin.readline()
try:
    with lease.held(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.readline()
except ConfigError as error:
    print("refused", error, flush=True)
"""


@contextmanager
def process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that takes the lease after one line of input and releases it after another."""
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert read(holder) == "ready"
        try:
            yield holder
        finally:
            holder.kill()


def read(holder: subprocess.Popen[str]) -> str:
    assert holder.stdout
    return holder.stdout.readline().strip()


def send(holder: subprocess.Popen[str]) -> None:
    assert holder.stdin
    holder.stdin.write("\n")
    holder.stdin.flush()


def content(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / lease.FILE).read_text()))


def change(folder: Path, **values: Any) -> None:
    (folder / lease.FILE).write_text(json.dumps(content(folder) | values))


def test_held_lease_names_this_process_and_is_removed(tmp_path: Path) -> None:
    with lease.held(str(tmp_path / "new")):
        found = content(tmp_path / "new")
        assert (found["pid"], found["host"]) == (os.getpid(), socket.gethostname())
    assert not (tmp_path / "new").exists()
    with lease.held(str(tmp_path / "new")):
        (tmp_path / "new" / "run.yaml").touch()
    assert os.listdir(tmp_path / "new") == ["run.yaml"]


def test_held_next_to_a_living_driver_raises(tmp_path: Path) -> None:
    with process(tmp_path) as holder:
        send(holder)
        assert read(holder) == "held"
        expected = rf"process {holder.pid} on `{re.escape(socket.gethostname())}` works in it since \d{{4}}-.*--resume"
        for _ in range(2):
            with pytest.raises(ConfigError, match=expected), lease.held(str(tmp_path)):
                pass
        before = content(tmp_path)
        time.sleep(0.5)
        assert content(tmp_path)["renewed"] > before["renewed"]
        send(holder)
        holder.wait(10)
    with lease.held(str(tmp_path)):
        pass


@pytest.mark.parametrize("reaped", [False, True])
def test_held_after_a_killed_driver_succeeds_at_once(tmp_path: Path, reaped: bool) -> None:
    with process(tmp_path) as holder:
        send(holder)
        assert read(holder) == "held"
        holder.send_signal(signal.SIGKILL)
        if reaped:
            holder.wait(10)
        else:
            os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, but still in the table of processes
        assert content(tmp_path)["pid"] == holder.pid
        began = time.monotonic()
        with lease.held(str(tmp_path)):
            assert content(tmp_path)["pid"] == os.getpid()
        assert time.monotonic() - began < 1.0


def test_held_pid_of_a_later_process_counts_as_ended(tmp_path: Path) -> None:
    with process(tmp_path) as holder:
        send(holder)
        assert read(holder) == "held"
        holder.send_signal(signal.SIGSTOP)  # so that it does not renew what is changed here
        change(tmp_path, process="1")
        with lease.held(str(tmp_path)):
            pass


def test_held_suspended_driver_expires_and_does_not_take_it_back(tmp_path: Path) -> None:
    with process(tmp_path) as holder:
        send(holder)
        assert read(holder) == "held"
        holder.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        with pytest.raises(ConfigError), lease.held(str(tmp_path)):
            pass
        change(tmp_path, renewed=time.time() - lease.EXPIRES_S - 1)
        with lease.held(str(tmp_path)):
            holder.send_signal(signal.SIGCONT)
            time.sleep(0.6)  # three renewals
            assert content(tmp_path)["pid"] == os.getpid()
            send(holder)
            assert holder.wait(10) == 0
            assert content(tmp_path)["pid"] == os.getpid()


def test_held_of_another_machine_waits_for_a_renewal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    with process(tmp_path) as holder:
        send(holder)
        assert read(holder) == "held"
        monkeypatch.setattr(lease, "_machine", lambda: "another kernel")
        with pytest.raises(ConfigError), lease.held(str(tmp_path), notes.append):
            pass
        monkeypatch.setattr(lease, "EXPIRES_S", 1.5)
        holder.kill()
        began = time.monotonic()
        with lease.held(str(tmp_path), notes.append):
            assert 1.5 <= time.monotonic() - began < 5.0
    assert re.search(rf"waiting up to \d+ s to see whether process {holder.pid} on `.*` still works in it", notes[-1])


def test_held_of_another_machine_long_ago_does_not_wait(tmp_path: Path) -> None:
    with process(tmp_path) as holder:
        send(holder)
        assert read(holder) == "held"
        holder.kill()
        holder.wait(10)
    change(tmp_path, machine="another kernel", renewed=time.time() - lease.CLOCKS_S - 1)
    began = time.monotonic()
    with lease.held(str(tmp_path)):
        assert time.monotonic() - began < 1.0


def test_held_with_patience_waits_for_the_end_of_the_driver(tmp_path: Path) -> None:
    with process(tmp_path) as holder:
        send(holder)
        assert read(holder) == "held"
        asked: list[str] = []

        def waiting(note: str) -> None:
            if not asked:
                send(holder)
            asked.append(note)

        with lease.held(str(tmp_path), waiting, patience_s=30.0):
            assert content(tmp_path)["pid"] == os.getpid()
        assert asked


@pytest.mark.parametrize("before", ["nothing", "a killed driver", "a damaged lease"])
def test_held_by_one_of_many_that_ask_at_once(tmp_path: Path, before: str) -> None:
    for number in range(3):
        folder = tmp_path / str(number)
        with process(folder) as dead:
            if before != "nothing":
                send(dead)
                assert read(dead) == "held"
        if before == "a damaged lease":
            (folder / lease.FILE).write_text("{")
        with ExitStack() as stack:
            holders = [stack.enter_context(process(folder)) for _ in range(6)]
            for holder in holders:
                send(holder)
            answers = [read(holder).partition(" ")[0] for holder in holders]
        assert sorted(answers) == ["held", *["refused"] * 5]


WRITE = """
import sys
from txclf.core.errors import StorageError
from txclf.core.lease import Holding
holding, number = Holding(sys.argv[1], sys.argv[2]), 0
print("ready", flush=True)
try:
    while True:
        holding.write(f"part-{number}", b"rows")
        number += 1
except StorageError as error:
    print("refused", flush=True)
"""


def test_discarded_folder_stays_away_while_workers_still_write(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    for _ in range(3):
        with lease.held(str(folder)) as holding:
            words = [sys.executable, "-c", WRITE, str(folder), holding.id]
            workers = [subprocess.Popen(words, text=True, stdout=subprocess.PIPE) for _ in range(2)]
            assert [read(worker) for worker in workers] == ["ready", "ready"]
            while not list(folder.glob("part-*")):
                time.sleep(0.01)
            holding.discard()
            assert [worker.communicate()[0].strip() for worker in workers] == ["refused", "refused"]
            assert not folder.exists()
        assert not folder.exists()


def test_write_of_a_driver_whose_lease_was_taken_over_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    with lease.held(str(folder)) as holding:
        holding.write("part-0", b"rows")
        other = json.loads((folder / lease.FILE).read_text()) | {"id": "another"}
        (folder / lease.FILE).write_text(json.dumps(other))
        with pytest.raises(StorageError, match="took its work over"):
            holding.write("part-1", b"rows")
        with pytest.raises(StorageError, match="took its work over"):
            holding.discard()
        assert sorted(path.name for path in folder.iterdir()) == [lease.FILE, "part-0"]


def test_require_is_for_the_process_that_holds_the_folder(tmp_path: Path) -> None:
    with lease.held(str(tmp_path)):
        lease.require(str(tmp_path))
        path = tmp_path / lease.FILE
        mine = path.read_text()
        path.write_text(json.dumps(json.loads(mine) | {"pid": 1}))
        with pytest.raises(StorageError, match="took its work over"):
            lease.require(str(tmp_path))
        path.write_text(mine)
    with pytest.raises(StorageError):
        lease.require(str(tmp_path))
