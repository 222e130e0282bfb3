"""Forks run a module as a process of its own would, and without a server the module runs all the same."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from txclf.core import fork_script, fork_server
from txclf.core.fork_server import Imports

SHOW = """
import json, os, random, resource, signal, sys
mask = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
print(json.dumps({
    "name": __name__, "arguments": sys.argv[1:], "variable": os.environ.get("VARIABLE"), "folder": os.getcwd(),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE), "oom": int(open("/proc/self/oom_score_adj").read()),
    "mask": mask, "parent": os.getppid(), "loaded": "colorsys" in sys.modules, "random": random.random(),
}), flush=True)
print("an error", file=sys.stderr)
"""


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Imports:
    """Return the imports of a server whose forks show what they see."""
    (tmp_path / "show_process.py").write_text(SHOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("IGNORED", "0")
    return Imports(["colorsys", "no_such_module"], "show_process", ["json"], ["IGNORED"])


def run(environment: dict[str, str], *arguments: str, **options: Any) -> tuple[dict[str, Any], str]:
    """Start the script, and return what the module has printed once its outputs are closed."""
    done = subprocess.run(
        [sys.executable, fork_script.__file__, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        **options,
    )
    return json.loads(done.stdout), done.stderr


def server_of(shown: dict[str, Any]) -> int:
    return int(shown["parent"])


def test_forks_have_the_arguments_environment_and_outputs_of_the_script(imports: Imports, tmp_path: Path) -> None:
    with fork_server.started(imports) as environment:
        first, errors = run(environment | {"VARIABLE": "x"}, "--one", "två", cwd=tmp_path)
        second, _ = run(environment | {"VARIABLE": "x", "IGNORED": "1"}, cwd="/")
    assert first == {
        **first,
        "name": "__main__",
        "arguments": ["--one", "två"],
        "variable": "x",
        "folder": str(tmp_path),
        "mask": [],
        "loaded": True,
    }
    assert errors == "an error\n"
    assert (second["folder"], second["arguments"], second["loaded"]) == ("/", [], True)
    assert server_of(first) == server_of(second) != os.getpid()
    assert first["random"] != second["random"]


def test_fork_keeps_blocked_signals(imports: Imports) -> None:
    with fork_server.started(imports) as environment:
        shown, _ = run(environment, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}))
    assert shown["loaded"]
    assert shown["mask"] == [signal.SIGINT]


def test_fork_keeps_limits_and_the_oom_score(imports: Imports) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
        Path(fork_script.OOM_SCORE).write_text("900")

    with fork_server.started(imports) as environment:
        shown, _ = run(environment, preexec_fn=limit)
        other, _ = run(environment)
    assert (shown["loaded"], shown["files"], shown["oom"]) == (True, [200, 300], 900)
    assert (other["files"], other["oom"]) == ([*resource.getrlimit(resource.RLIMIT_NOFILE)], other["oom"] % 900)


def test_script_that_ended_during_the_imports_gets_no_fork(imports: Imports, tmp_path: Path) -> None:
    (tmp_path / "slow_module.py").write_text("import time; time.sleep(3)")
    (tmp_path / "mark_process.py").write_text(
        "import pathlib, sys\nif __name__ == '__main__': pathlib.Path(sys.argv[0]).with_name(sys.argv[1]).touch()"
    )
    imports = replace(imports, modules=["slow_module"], main_module="mark_process")
    with fork_server.started(imports) as environment:
        command = [sys.executable, str(tmp_path / "script.py")]
        Path(command[1]).write_text(Path(fork_script.__file__).read_text())
        options: Any = {"env": {**os.environ, **environment}}
        ended = subprocess.Popen([*command, "ended"], **options)
        time.sleep(1)
        ended.kill()
        ended.wait()
        subprocess.run([*command, "lived"], check=True, **options)
        until = time.monotonic() + 30
        while not (tmp_path / "lived").exists() and time.monotonic() < until:
            time.sleep(0.05)
    assert (tmp_path / "lived").exists()
    assert not (tmp_path / "ended").exists()


def test_senders_that_end_early_leave_no_open_files(imports: Imports) -> None:
    with fork_server.started(imports) as environment:
        shown, _ = run(environment)
        files = Path(f"/proc/{server_of(shown)}/fd")
        before = len([*files.iterdir()])
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(environment[fork_script.SERVER])
                socket.send_fds(connection, [b"1"], [1, 2])
                connection.sendall(b"{")
        again, _ = run(environment)
        assert again["loaded"]
        assert len([*files.iterdir()]) <= before + 1  # the connection may still be open


def test_first_process_without_an_ignored_variable_is_not_forked(
    imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IGNORED")
    with fork_server.started(imports) as environment:
        without, _ = run(environment)
        forked, _ = run(environment | {"IGNORED": "1"})
    assert (without["loaded"], forked["loaded"]) == (False, True)


def test_no_server_in_a_temporary_folder_with_a_long_name(
    imports: Imports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with fork_server.started(imports) as environment:
        assert environment == {}
    assert not [*folder.iterdir()]


def test_process_of_another_environment_is_not_forked(imports: Imports) -> None:
    with fork_server.started(imports) as environment:
        first, _ = run(environment | {"VARIABLE": "x"})
        other, errors = run(environment | {"VARIABLE": "y"}, "--one")
    assert (first["variable"], first["loaded"]) == ("x", True)
    assert (other["variable"], other["arguments"], other["loaded"]) == ("y", ["--one"], False)
    assert errors == "an error\n"


def test_late_modules_see_the_environment_of_the_first_process(imports: Imports, tmp_path: Path) -> None:
    (tmp_path / "late_module.py").write_text("import os, pathlib\npathlib.Path(os.environ['VARIABLE']).touch()\n")
    imports.late_modules = ["late_module"]
    with fork_server.started(imports) as environment:
        run(environment | {"VARIABLE": str(tmp_path / "seen")})
    assert (tmp_path / "seen").exists()


def test_without_its_server_the_module_runs_in_a_process_of_its_own(imports: Imports) -> None:
    with fork_server.started(imports) as environment:
        shown, _ = run(environment)
        os.kill(server_of(shown), signal.SIGKILL)
        again, errors = run(environment, "--one")
    assert (again["name"], again["arguments"], again["loaded"]) == ("__main__", ["--one"], False)
    assert errors == "an error\n"
    assert not Path(environment[fork_script.SERVER]).parent.exists()


def test_server_ends_with_the_process_that_has_started_it(imports: Imports) -> None:
    program = (
        "import time\nfrom txclf.core.fork_server import Imports, started\n"
        f"with started(Imports({imports.modules!r}, {imports.main_module!r}, [], [])) as found:\n"
        "    print(found['TXCLF_FORK_SERVER'], flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = Path(process.stdout.readline().strip())
    shown, _ = run({fork_script.SERVER: str(address), fork_script.MODULE: imports.main_module})
    assert shown["loaded"]
    process.kill()
    process.communicate()
    until = time.monotonic() + 30
    while Path(f"/proc/{server_of(shown)}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{server_of(shown)}").exists()
    assert not address.parent.exists()


def test_server_outlives_signals_to_its_group_and_its_forks_do_not(imports: Imports, tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(
        "import os, time\nif __name__ == '__main__': print(os.getppid(), flush=True); time.sleep(60)"
    )
    with fork_server.started(replace(imports, main_module="waiting")) as environment:
        script = [sys.executable, fork_script.__file__]
        process = subprocess.Popen(script, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        server = int(process.stdout.readline())
        children = Path(f"/proc/{server}/task/{server}/children")
        (fork,) = map(int, children.read_text().split())
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(server, number)
        os.kill(fork, signal.SIGTERM)
        until = time.monotonic() + 30
        while children.read_text().split() and time.monotonic() < until:
            time.sleep(0.05)
        assert not children.read_text().split()
        assert Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[0] in "RS"  # no zombie
        process.kill()
        process.communicate()
