"""Prediction in parts: killed and gone on with, on workers of Ray, in a memory that does not grow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.helpers.testbed import Testbed, wait_until
from txclf.config.sections import Compute
from txclf.core.errors import ConfigError, DataError
from txclf.prediction import parts, predict

LONG = "five boxing wizards jump quickly over the lazy dog " * 20


def lines(path: Path, rows: int, first: int = 0) -> str:
    """JSON lines, of which each hundredth has no text."""
    with path.open("w") as file:
        for row in range(first, first + rows):
            file.write(json.dumps({"n": row, "text": None if row % 100 == 99 else f"{row} {LONG}"}) + "\n")
    return str(path)


def finished(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("0*") if "errors" not in path.name) if folder.exists() else []


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "txclf", "predict", *words, "--chunk-rows", "100"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)]
)
def test_what_a_stopped_prediction_finished_is_kept(tmp_path: Path, tiny_bundle: str, number: signal.Signals) -> None:
    path = lines(tmp_path / "in.jsonl", 8_000)
    whole = predict.predict(tiny_bundle, [path], out=str(tmp_path / "whole.csv"), chunk_rows=100)
    words = [tiny_bundle, path, "--out", str(tmp_path / "out.csv")]
    folder = tmp_path / ".out.csv.parts"
    child = start(*words)
    wait_until(lambda: len(finished(folder)) > 30, 90, child)
    child.send_signal(number)
    _, told = child.communicate()
    kept = finished(folder)
    stamps = {name: (folder / name).stat().st_mtime_ns for name in kept}
    assert 30 < len(kept) < 80
    assert not (tmp_path / "out.csv").exists()
    if number != signal.SIGKILL:
        assert child.returncode == 128 + number
        assert "ask again in the same words" in told
    (folder / ".left-by-a-killed-writer").write_text("half")

    seen: list[int] = []
    done = predict.predict(
        tiny_bundle,
        [path],
        out=str(tmp_path / "out.csv"),
        chunk_rows=100,
        on_progress=lambda rows: seen.append(rows) or same(folder, stamps),  # type: ignore[func-returns-value]
    )
    assert done == predict.PredictionSummary(8_000, 80, whole.columns, resumed_rows=100 * len(kept))
    assert seen[-1] == 8_000
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "out.csv.errors.jsonl").read_bytes() == (tmp_path / "whole.csv.errors.jsonl").read_bytes()
    assert not folder.exists()


def same(folder: Path, stamps: dict[str, int]) -> None:
    assert {name: (folder / name).stat().st_mtime_ns for name in stamps} == stamps


class Stop(Exception):
    """Not an error of txclf: it stands for all that may end a process."""


def stop(rows: int) -> None:
    raise Stop


def test_a_stopped_prediction_of_something_else_is_not_gone_on_with(tmp_path: Path, tiny_bundle: str) -> None:
    path, out = lines(tmp_path / "in.jsonl", 300), str(tmp_path / "out.jsonl")
    with pytest.raises(Stop):
        predict.predict(tiny_bundle, [path], out=out, chunk_rows=100, on_progress=stop)
    with pytest.raises(
        ConfigError,
        match=r"\.out\.jsonl\.parts` holds an interrupted prediction with a different --probabilities\. Rerun",
    ):
        predict.predict(tiny_bundle, [path], out=out, chunk_rows=100, probabilities=True)
    assert predict.predict(tiny_bundle, [path], out=out, chunk_rows=100).resumed_rows == 100
    with pytest.raises(Stop):
        predict.predict(tiny_bundle, [path], out=out, chunk_rows=100, on_progress=stop)
    lines(tmp_path / "in.jsonl", 301)
    with pytest.raises(ConfigError, match=r"with different inputs\. Rerun"):
        predict.predict(tiny_bundle, [path], out=out, chunk_rows=100)
    assert predict.predict(tiny_bundle, [path], out=out, chunk_rows=100, restart=True) == predict.PredictionSummary(
        301, 3, ["label", "probability"]
    )


def test_a_text_that_changed_in_its_folder_is_another_input(tmp_path: Path, tiny_bundle: str) -> None:
    (tmp_path / "texts" / "any").mkdir(parents=True)
    text, out = tmp_path / "texts" / "any" / "a.txt", str(tmp_path / "out.csv")
    text.write_text("fox")
    with pytest.raises(Stop):
        predict.predict(tiny_bundle, [str(tmp_path / "texts")], out=out, on_progress=stop)
    text.write_text("another fox")  # the folder's own time of change stays
    with pytest.raises(ConfigError, match=r"with different inputs\. Rerun"):
        predict.predict(tiny_bundle, [str(tmp_path / "texts")], out=out)


def test_parts_of_long_texts_have_fewer_rows(tmp_path: Path, tiny_bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_CHUNK_CHARS", 10 * len(LONG))
    monkeypatch.setattr(parts, "READ_ROWS", 4)
    path = lines(tmp_path / "in.jsonl", 50)
    shown: list[int] = []
    predict.predict(tiny_bundle, [path], out=str(tmp_path / "out.parquet"), on_progress=shown.append)
    assert shown == [12, 24, 36, 48, 50]
    assert pq.read_table(tmp_path / "out.parquet")["n"].to_pylist() == list(range(50))
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 1


PEAK = """
import re, sys
from pathlib import Path
from txclf.prediction import predict
done = predict.predict(sys.argv[1], [sys.argv[2]], sys.argv[3], chunk_rows=500)
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]  # of this process, not of its parent
print(done.rows, int(peak) // 1024)
"""


@pytest.mark.parametrize("ending", [pytest.param("csv", marks=pytest.mark.faults), "parquet"])
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, tiny_bundle: str, ending: str, figure: Callable[[str], None]
) -> None:
    peaks = []
    for rows in (16_000, 64_000):
        path = lines(tmp_path / f"{rows}.jsonl", rows)
        command = [sys.executable, "-c", PEAK, tiny_bundle, path, str(tmp_path / f"out.{ending}")]
        done, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        assert done == rows
        peaks.append(peak)
    size = os.path.getsize(path) / 2**20
    figure(f"prediction of 16 and {size:.0f} MB into {ending}: peaks of {peaks[0]} and {peaks[1]} MB")
    assert peaks[1] - peaks[0] < size / 4


RAY = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """A folder of files of different size."""
    (tmp_path / "in").mkdir()
    for number, rows in enumerate([7_000, 1, 450, 3_000]):
        lines(tmp_path / "in" / f"{number}.jsonl", rows, first=number * 100_000)
    return [str(tmp_path / "in")]


@RAY
@pytest.mark.usefixtures("local_ray")
def test_workers_of_ray_make_the_same_file(tmp_path: Path, tiny_bundle: str, inputs: list[str]) -> None:
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    done = predict.predict(tiny_bundle, inputs, out=str(here), chunk_rows=100)
    compute = Compute(workers=2, cpus_per_worker=1.5)  # all that there are
    assert predict.predict(tiny_bundle, inputs, out=str(there), compute=compute, chunk_rows=100) == done
    assert pq.read_table(there).equals(pq.read_table(here))
    assert Path(f"{there}.errors.jsonl").read_bytes() == Path(f"{here}.errors.jsonl").read_bytes()


@RAY
@pytest.mark.faults
@pytest.mark.usefixtures("local_ray")
def test_a_worker_a_driver_and_a_row_may_fail_on_ray(tmp_path: Path, tiny_bundle: str, inputs: list[str]) -> None:
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    done = predict.predict(tiny_bundle, inputs, out=str(here), chunk_rows=100)
    compute = Compute(workers=2)
    killed: list[int] = []

    def kill(rows: int) -> None:
        if rows >= 1_000 and not killed:
            found = [
                int(path.parent.name)
                for path in Path("/proc").glob("[0-9]*/cmdline")
                if path.read_bytes().startswith(b"ray::MapWorker")
            ]
            assert len(found) == 2
            killed.append(found[0])
            os.kill(found[0], signal.SIGKILL)

    assert (
        predict.predict(tiny_bundle, inputs, out=str(there), on_progress=kill, compute=compute, chunk_rows=100) == done
    )
    assert killed
    assert pq.read_table(there).equals(pq.read_table(here))

    with pytest.raises(Stop):  # the driver ends, and the next one goes on in this process
        predict.predict(tiny_bundle, inputs, out=str(there), on_progress=stop, compute=compute, chunk_rows=100)
    assert predict.predict(tiny_bundle, inputs, out=str(there), chunk_rows=100).resumed_rows >= 100
    assert pq.read_table(there).equals(pq.read_table(here))

    (tmp_path / "in" / "4.jsonl").write_text('{"n": "a word", "text": "fox"}\n')
    with pytest.raises(DataError, match=r"4\.jsonl`: a column changes type from row 1 on: "):
        predict.predict(tiny_bundle, inputs, out=str(there), compute=compute, chunk_rows=100)
    (tmp_path / "in" / "4.jsonl").write_text('{"m": 1}\n')
    with pytest.raises(DataError, match=r"4\.jsonl`: no column `text`"):
        predict.predict(tiny_bundle, inputs, out=str(there), compute=compute, chunk_rows=100)
    assert not (tmp_path / ".there.parquet.parts").exists()


@pytest.mark.faults
def test_a_cluster_that_loses_a_node_makes_the_same_file(tmp_path: Path, tiny_bundle: str) -> None:
    path = lines(tmp_path / "in.jsonl", 30_000)
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    predict.predict(tiny_bundle, [path], out=str(here), chunk_rows=100)
    words = [tiny_bundle, path, "--out", str(there), "--chunk-rows", "100", "--workers", "2"]
    command = [sys.executable, "-m", "txclf", "predict", *words]
    with Testbed(head_cpus=0) as bed:
        bed.add("one", 1)
        two = bed.add("two", 1)
        child = bed.start(*command, "--address", bed.address, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until(lambda: len(finished(tmp_path / ".there.jsonl.parts")) > 20, 120, child)
        bed.kill(two)
        _, told = child.communicate(timeout=300)
    assert child.returncode == 0, told
    assert there.read_bytes() == here.read_bytes()
    assert Path(f"{there}.errors.jsonl").read_bytes() == Path(f"{here}.errors.jsonl").read_bytes()
