"""`txclf serve` as a process: output, errors, limits on Ray, replicas that die, graceful shutdown."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import txclf
from tests.helpers.serving import TEXTS, TXCLF, Server, counts
from tests.helpers.waiting import wait_until
from txclf import Classifier
from txclf.cli import serve
from txclf.core.errors import ConfigError
from txclf.core.signals import StopSignals
from txclf.serving import connections, settings
from txclf.serving import serve as service
from txclf.serving.settings import Limits, Settings


def stopped(pids: Sequence[int]) -> Callable[[], None]:
    """Stop processes and return the function that resumes them."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    def resume() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    return resume


def test_serve_without_ray_answers_and_shuts_down(tiny_bundle: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    server = Server(tiny_bundle, "--token-file", str(tmp_path / "token"))
    try:
        assert server.curl.startswith(f"curl {server.url}/predict ")
        done = subprocess.run(["sh", "-c", f"{server.curl} -s"], check=True, capture_output=True, text=True)
        assert json.loads(done.stdout)["predictions"][0]["label"] in ("low", "mid", "high")
        assert server.ask("/predict", {"text": "a"})[0] == 401
        taken = subprocess.run(
            [*TXCLF, "serve", tiny_bundle, "--port", server.url.rpartition(":")[2]], capture_output=True, text=True
        )
        assert taken.returncode == 2
        assert "in use. Pass another port, or --port 0" in taken.stderr
    finally:
        code, out, err = server.end(signal.SIGINT)
    assert (code, err) == (0, "")
    assert out == "ended; every request was answered\n"


def test_serve_second_ctrl_c_ends_it_in_the_middle_of_a_batch(tiny_bundle: str) -> None:
    server = Server(tiny_bundle, "--max-texts", "1000000", "--max-bytes", "100000000", "--timeout", "600")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.ask, "/predict", {"texts": ["a fox " * 20] * 100_000})
        time.sleep(3)  # the model computes now
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert server.process.poll() is None
        started = time.monotonic()
        code, _, err = server.end(signal.SIGINT)
        assert (code, err) == (130, "ended; open requests were not answered\n")
        assert time.monotonic() - started < 5  # the batch takes longer
        assert asked.exception() or asked.result()[0] >= 500


def test_serve_invalid_arguments_exit_with_2(tiny_bundle: str, tmp_path: Path) -> None:
    def stderr_of(*arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [*TXCLF, "serve", *arguments], capture_output=True, text=True, env={**os.environ, **environment}
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "not a model bundle" in stderr_of(str(tmp_path))
    assert "TXCLF_SERVE_TOKEN`: expected a token" in stderr_of(tiny_bundle, TXCLF_SERVE_TOKEN="a b")
    assert "cannot be read" in stderr_of(tiny_bundle, "--token-file", str(tmp_path / "none"))
    assert "--max-replicas 1: expected at least 2" in stderr_of(tiny_bundle, "--replicas", "2", "--max-replicas", "1")
    assert "--host 192.0.2.1" in stderr_of(tiny_bundle, "--host", "192.0.2.1")


def test_serve_signal_before_the_server_handles_signals_ends_it(
    tiny_bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect_all = StopSignals.collect_all

    def interrupted(signals: StopSignals) -> None:
        collect_all(signals)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(StopSignals, "collect_all", interrupted)
    assert service.serve(tiny_bundle, Settings(port=0), lambda started: pytest.fail("it serves"))


@pytest.mark.parametrize(("closing_s", "shutdown_s"), [(1, 6), (10, 1)])
def test_run_with_a_client_that_does_not_read_its_answer_is_false(
    monkeypatch: pytest.MonkeyPatch, closing_s: float, shutdown_s: int
) -> None:
    monkeypatch.setattr(connections, "CLOSING_SECONDS", closing_s)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 100_000_000})

    for reads in (True, False):
        server = service.http_server(app, Limits(seconds=0.5))
        server.config.timeout_graceful_shutdown = shutdown_s
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def ask() -> None:
                with socket.create_connection(listening.getsockname()) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    client.recv(100)
                    server.should_exit = True  # noqa: B023
                    while reads and client.recv(1 << 20):  # noqa: B023
                        pass
                    time.sleep(0 if reads else 4)  # noqa: B023

            thread = threading.Thread(target=ask)
            assert service._run(server, listening, lambda: False, thread.start) is reads
            thread.join()


def test_serve_missing_package_names_its_extra(tiny_bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "PACKAGES", ("fastapi", "not_installed_here"))
    for start in (serve.serve, txclf.serve):
        with pytest.raises(ConfigError, match=r"`not_installed_here`\. Run `pip install 'txclf\[serve\]'`"):
            start(tiny_bundle)


def test_serve_on_ray_limits_time_and_queue(tiny_bundle: str) -> None:
    arguments = [
        "--replicas",
        "1",
        "--max-batch-size",
        "1",
        "--max-queue",
        "2",
        "--timeout",
        "3",
        "--cpus-per-replica",
        "0.5",
        "--max-bytes",
        "3000",
    ]
    server = Server(tiny_bundle, *arguments)
    try:
        assert server.ask("/predict", {"text": "fox"})[0] == 200
        assert server.ask("/predict", {"text": "x" * 4000})[0] == 413
        assert server.ask("/healthz") == (200, {"status": "ok"})
        assert counts(server.ask("/metrics")[1])["txclf_serve_replicas"] == 1
        # A body that never arrives.
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as slow:
            head = f"POST /predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: 9"
            slow.sendall(f"{head}\r\n\r\n{{".encode())
            assert b" 408 " in slow.recv(4096).splitlines()[0]
        # A replica hangs: it holds two requests, two are queued (three while Ray Serve assigns one), and the others are
        # refused at once.
        resume = stopped(server.replicas())
        try:
            with ThreadPoolExecutor(10) as pool:
                found = [status for status, _ in pool.map(lambda _: server.ask("/predict", {"text": "fox"}), range(10))]
        finally:
            resume()
        assert set(found) == {503, 504}
        assert 2 <= found.count(504) <= 5
        wait_until(lambda: server.ask("/predict", {"text": "fox"})[0] == 200)
    finally:
        code, out, err = server.end()
    assert (code, err) == (0, "")
    assert out == "ended; every request was answered\n"


@pytest.mark.usefixtures("local_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_serve_on_a_connected_ray_removes_its_replicas(tiny_bundle: str) -> None:
    from ray import serve as ray_serve

    settings = Settings(port=0, replicas=1, cpus_per_replica=0.5)
    assert service.serve(tiny_bundle, settings, lambda started: signal.raise_signal(signal.SIGTERM))
    assert not ray_serve.status().applications
    ray_serve.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.faults
def test_serve_killed_replicas_and_shutdown_lose_no_request(tiny_bundle: str) -> None:
    """Kill replicas under load, then shut down while requests are open."""
    server = Server(tiny_bundle, "--replicas", "2", "--cpus-per-replica", "0.5", "--timeout", "60")
    right = Classifier.load(tiny_bundle)(TEXTS)
    statuses: list[int] = []
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            status, content = server.ask("/predict", {"texts": TEXTS})
            statuses.append(status)
            if status == 200:
                assert [one["label"] for one in content["predictions"]] == [one.label for one in right]

    try:
        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(load) for _ in range(8)]
            try:
                for _ in range(3):
                    wait_until(lambda: len(server.replicas()) == 2)
                    before = len(statuses)
                    wait_until(lambda: len(statuses) > before + 50)  # noqa: B023
                    os.kill(server.replicas()[0], signal.SIGKILL)
                wait_until(lambda: len(server.replicas()) == 2)
            finally:
                over.set()
            for one in clients:
                one.result()
        assert set(statuses) == {200}
        assert counts(server.ask("/metrics")[1])["txclf_serve_retries_total"] >= 1
        resume = stopped(server.replicas())
        with ThreadPoolExecutor(4) as pool:
            open_requests = [pool.submit(server.ask, "/predict", {"texts": TEXTS}) for _ in range(4)]
            time.sleep(1)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(1)
            with pytest.raises(urllib.error.URLError, match="refused"):
                server.ask("/healthz")
            assert server.process.poll() is None
            resume()
            assert [one.result()[0] for one in open_requests] == [200] * 4
    finally:
        code, out, err = server.end()
    assert (code, err) == (0, "")
    assert out.endswith("ended; every request was answered\n")  # after Ray's messages about the killed replicas


@pytest.mark.faults
def test_serve_autoscaling_adds_a_replica_under_load(tiny_bundle: str) -> None:
    server = Server(
        tiny_bundle, "--replicas", "1", "--max-replicas", "2", "--cpus-per-replica", "0.5", "--max-batch-size", "1"
    )
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            assert server.ask("/predict", {"text": "fox"})[0] == 200

    try:
        assert len(server.replicas()) == 1
        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(load) for _ in range(8)]
            try:
                wait_until(lambda: counts(server.ask("/metrics")[1])["txclf_serve_replicas"] == 2)
                assert len(server.replicas()) == 2
            finally:
                over.set()
            for client in clients:
                client.result()
    finally:
        code, out, err = server.end()
    assert (code, out, err) == (0, "ended; every request was answered\n", "")
