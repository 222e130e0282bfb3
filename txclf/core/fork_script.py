"""Have the fork server run a module with the arguments of this process, or run it here if the server has gone.

A program that starts a Python script, as Ray does, starts this file instead, by its path. It imports the standard
library only, because it is there to be quick.
"""

import json
import os
import signal
import socket
import sys

SERVER, MODULE = "TXCLF_FORK_SERVER", "TXCLF_FORK_MODULE"
"""Environment variables with the address of the server and the name of the module."""

OOM_SCORE = "/proc/self/oom_score_adj"
"""How soon the system ends a process for want of memory (proc(5)); Ray sets it for the process that it has started."""


def forked() -> bool:
    """Return True if the server has forked a process that runs the module."""
    import resource  # of Unix only, as forks are

    try:
        with open(OOM_SCORE) as file:
            oom_score = file.read()
        request = {
            "arguments": sys.argv,
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "executable": sys.executable,
            "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "oom_score": oom_score,
        }
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.environ[SERVER])
            socket.send_fds(connection, [b"1"], [1, 2])
            connection.sendall(json.dumps(request).encode())
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1) == b"1"  # after the imports of the server
    except OSError:
        return False


if __name__ == "__main__":
    parent = os.getppid()
    # Without its parent nobody waits for the module.
    if not forked() and os.getppid() == parent:
        os.execv(sys.executable, [sys.executable, "-P", "-m", os.environ[MODULE], *sys.argv[1:]])
