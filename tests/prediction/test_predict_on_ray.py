"""Prediction on Ray: the same output as in this process, with workers, drivers and nodes that die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.helpers.prediction import Stop, part_files, stop, write_jsonl
from tests.helpers.ray_cpus import every_cpu_taken
from tests.helpers.ray_processes import workers_of_ray
from tests.helpers.testbed import Testbed
from tests.helpers.waiting import PATIENCE_S, wait_until
from txclf.config.sections import Compute
from txclf.core.errors import ClusterError, DataError
from txclf.data import actor_pool
from txclf.prediction import predict

RAY = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Write a folder of files of different sizes."""
    (tmp_path / "in").mkdir()
    for number, rows in enumerate([7_000, 1, 450, 3_000]):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows, first=number * 100_000)
    return [str(tmp_path / "in")]


@RAY
@pytest.mark.usefixtures("local_ray")
def test_predict_on_ray_writes_the_same_file(tmp_path: Path, tiny_bundle: str, inputs: list[str]) -> None:
    (tmp_path / "in" / "4.jsonl").write_text('{"n": 0.5, "text": "fox"}\n')  # the others have integers
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    done = predict.predict(tiny_bundle, inputs, out=str(here), chunk_rows=100)
    assert pq.read_table(here)["n"].to_pylist()[-2:] == [302_999, 0.5]
    compute = Compute(workers=2, cpus_per_worker=1.5)  # all CPUs of the local Ray
    assert predict.predict(tiny_bundle, inputs, out=str(there), compute=compute, chunk_rows=100) == done
    assert pq.read_table(there).equals(pq.read_table(here))
    assert Path(f"{there}.errors.jsonl").read_bytes() == Path(f"{here}.errors.jsonl").read_bytes()


def reading_processes() -> int:
    """Return the number of processes that read input files at this moment."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # a process that has ended
            found += path.read_bytes().startswith(b"ray::FlatMap(chunks)")
    return found


@RAY
@pytest.mark.usefixtures("local_ray")
def test_predict_on_ray_reads_many_files_in_few_processes(tmp_path: Path, tiny_bundle: str) -> None:
    (tmp_path / "in").mkdir()
    for number in range(20):
        write_jsonl(tmp_path / "in" / f"{number:02}.jsonl", 50, first=number * 50)
    counts: list[int] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.05):
            counts.append(reading_processes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        out = str(tmp_path / "out.jsonl")
        summary = predict.predict(
            tiny_bundle, [str(tmp_path / "in")], out=out, compute=Compute(workers=2), chunk_rows=10
        )
    finally:
        done.set()
        thread.join()
    assert summary.rows == 1_000
    assert 1 <= max(counts) <= 2


@RAY
@pytest.mark.usefixtures("local_ray")
def test_predict_on_ray_without_a_free_cpu_fails_in_time(
    tmp_path: Path, tiny_bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_pool, "NO_PROGRESS_TIMEOUT_S", 3)
    path = write_jsonl(tmp_path / "in.jsonl", 10)
    with every_cpu_taken():
        start = time.monotonic()
        with pytest.raises(
            ClusterError, match=r"the prediction made no progress on Ray for 3 s, and Ray has 0 of 3 CPUs"
        ):
            predict.predict(tiny_bundle, [path], out=str(tmp_path / "out.csv"), compute=Compute(workers=2))
        assert time.monotonic() - start < 30


@RAY
@pytest.mark.faults
@pytest.mark.usefixtures("local_ray")
def test_predict_on_ray_survives_killed_workers_and_reports_bad_rows(
    tmp_path: Path, tiny_bundle: str, inputs: list[str]
) -> None:
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    done = predict.predict(tiny_bundle, inputs, out=str(here), chunk_rows=100)
    compute = Compute(workers=2)
    killed: list[int] = []

    def kill(rows: int) -> None:
        if rows >= 1_000 and not killed:
            workers = workers_of_ray("MapWorker")
            assert len(workers) == 2
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    assert (
        predict.predict(tiny_bundle, inputs, out=str(there), on_progress=kill, compute=compute, chunk_rows=100) == done
    )
    assert killed
    assert pq.read_table(there).equals(pq.read_table(here))

    with pytest.raises(Stop):  # the driver ends, and the next attempt resumes in this process
        predict.predict(tiny_bundle, inputs, out=str(there), on_progress=stop, compute=compute, chunk_rows=100)
    assert predict.predict(tiny_bundle, inputs, out=str(there), chunk_rows=100).resumed_rows >= 100
    assert pq.read_table(there).equals(pq.read_table(here))

    (tmp_path / "in" / "4.jsonl").write_text('{"n": "a word", "text": "fox"}\n')
    with pytest.raises(DataError, match=r"4\.jsonl`: column `n`: string here, but int64 before"):
        predict.predict(tiny_bundle, inputs, out=str(there), compute=compute, chunk_rows=100)
    (tmp_path / "in" / "4.jsonl").write_text('{"m": 1}\n')
    with pytest.raises(DataError, match=r"4\.jsonl`: no column `text`"):
        predict.predict(tiny_bundle, inputs, out=str(there), compute=compute, chunk_rows=100)
    assert not (tmp_path / ".there.parquet.parts").exists()


@pytest.mark.faults
def test_predict_on_a_cluster_that_loses_a_node_writes_the_same_file(tmp_path: Path, tiny_bundle: str) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", 30_000)
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    predict.predict(tiny_bundle, [path], out=str(here), chunk_rows=100)
    arguments = [tiny_bundle, path, "--out", str(there), "--chunk-rows", "100", "--workers", "2"]
    command = [sys.executable, "-m", "txclf", "predict", *arguments]
    with Testbed(head_cpus=0) as bed:
        bed.add("one", 1)
        two = bed.add("two", 1)
        child = bed.start(*command, "--address", bed.address, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until(lambda: len(part_files(tmp_path / ".there.jsonl.parts")) > 20, child)
        bed.kill(two)
        _, stderr = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, stderr
    assert there.read_bytes() == here.read_bytes()
    assert Path(f"{there}.errors.jsonl").read_bytes() == Path(f"{here}.errors.jsonl").read_bytes()
