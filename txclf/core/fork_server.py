"""A process that imports libraries once and forks the processes that need them.

A Python process that trains takes many seconds to import torch and Lightning. `multiprocessing` has a fork server for
its own functions (https://docs.python.org/3/library/multiprocessing.html#contexts-and-start-methods); this one is for
processes that another program starts, as Ray does with its workers: it starts `fork_script.py` instead, which sends its
arguments, environment and outputs here.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from txclf.core import fork_script

PAUSE_S = 30.0
"""Seconds for which the sender of a request may pause."""


@dataclass
class Imports:
    """What a fork server imports for its forks. A module that cannot be imported is left to them."""

    modules: Sequence[str]
    """Imported at once."""
    main_module: str
    """The module that each fork runs as its `__main__`, imported with the environment of the first fork."""
    late_modules: Sequence[str]
    """Imported after it: they read the environment too. Processes of another environment are not forked."""
    ignored: Sequence[str]
    """Environment variables that may differ, but which the first fork must have; all others get those of the first."""


@contextmanager
def started(imports: Imports) -> Iterator[dict[str, str]]:
    """Start a server; yield the environment in which `fork_script.py` forks a process from it.

    Yields nothing if the system allows no server, such as one in a temporary folder with a long name. The server ends
    with the block or with this process. Its forks go on.
    """
    folder = tempfile.mkdtemp(prefix="txclf-fork-")  # only this user can enter
    address, server = str(Path(folder, "server")), None
    with suppress(OSError), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(socket.SOMAXCONN)
        server = _process(listener, folder, imports)
    try:
        yield {fork_script.SERVER: address, fork_script.MODULE: imports.main_module} if server else {}
    finally:
        if server:
            server.kill()
            server.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def _process(listener: socket.socket, folder: str, imports: Imports) -> subprocess.Popen[bytes]:
    path = [entry for entry in sys.path if isinstance(entry, str)]
    program = f"import sys; sys.path[:] = {path!r}; from txclf.core import fork_server; fork_server.main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(listener.fileno()), folder, json.dumps(asdict(imports))],
        pass_fds=[listener.fileno()],
        stdin=subprocess.PIPE,  # ends with this process
        stdout=subprocess.DEVNULL,
        env={"PYTHONWARNINGS": "ignore", **os.environ},  # those of imports concern nobody
    )


def main() -> None:
    """Serve until standard input ends; in each fork, run the main module with the arguments of its request."""
    descriptor, folder, imports = sys.argv[1:]
    gc.disable()  # until there are forks, as the documentation of `gc.freeze` advises
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the process that has started this decides
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(descriptor)) as listener:
        request = _serve(listener, Imports(**json.loads(imports)))
    if request is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _run(*request)


def _serve(listener: socket.socket, imports: Imports) -> tuple[dict[str, Any], list[int]] | None:
    """Fork a process for each request; return the request and its outputs in the fork, and None at the end."""
    _import(imports.modules)
    environment: dict[str, str] | None = None
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return None
        connection, _ = listener.accept()
        with connection:
            try:
                connection.settimeout(PAUSE_S)
                request, outputs = _received(connection)
            except (OSError, ValueError):
                continue  # the sender has ended before it had sent all
            asked = request["environment"]
            if environment is None and asked.keys() >= {*imports.ignored}:
                environment = asked
                os.environ.update(environment)
                _import([imports.main_module, *imports.late_modules])
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no ended fork stays as a zombie
            if environment and _can_be_forked(request, environment, imports) and not _is_closed(connection):
                if os.fork() == 0:
                    return {**request, "environment": environment, "module": imports.main_module}, outputs
                with suppress(OSError):
                    connection.sendall(b"1")
            _close(outputs)


def _can_be_forked(request: dict[str, Any], environment: dict[str, str], imports: Imports) -> bool:
    """Return True if a process of this environment is what the request asks for."""
    asked = request["environment"]
    differ = {name for name in asked.keys() | environment.keys() if asked.get(name) != environment.get(name)}
    # Another executable may have other packages.
    return differ <= {*imports.ignored} and request["executable"] == sys.executable


def _is_closed(connection: socket.socket) -> bool:
    """Return True if the sender of a request has ended meanwhile."""
    events = select.poll()
    events.register(connection, 0)  # whether it has hung up comes unasked
    return any(event & select.POLLHUP for _, event in events.poll(0))


def _import(modules: Sequence[str]) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # the forks report it, if they need it
            print(f"{name}: {error}", file=sys.stderr)
    gc.freeze()  # the forks share memory that no collection writes to


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a request and the file descriptors of its standard output and error."""
    _, outputs, _, _ = socket.recv_fds(connection, 1, 2)
    try:
        parts = []
        while part := connection.recv(2**16):
            parts.append(part)
        return json.loads(b"".join(parts)), outputs
    except (OSError, ValueError):
        _close(outputs)
        raise


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _run(request: dict[str, Any], outputs: list[int]) -> None:
    """Become the process of the request, and run its module."""
    import resource  # of Unix only, as forks are

    gc.enable()
    os.setpgid(0, 0)  # Ray ends the group of a worker that has ended
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, copy in zip([nothing, *outputs], (0, 1, 2), strict=True):
        os.dup2(descriptor, copy)
        os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(request["files"]))
    with suppress(OSError):  # a lower score than that of this process
        Path(fork_script.OOM_SCORE).write_text(request["oom_score"])
    os.environ.clear()
    os.environ.update(request["environment"])
    with suppress(OSError):  # the folder has been removed
        os.chdir(request["folder"])
    sys.argv[:] = request["arguments"]
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # of its own, as in a process that has just imported it
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
