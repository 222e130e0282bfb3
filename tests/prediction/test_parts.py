"""Chunks of a prediction: interrupted and resumed predictions, sizes of chunks, memory."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.prediction import LONG_TEXT, Stop, part_files, stop, with_quantiles, write_jsonl
from tests.helpers.processes import at_once
from tests.helpers.waiting import wait_until
from txclf.core import lease
from txclf.core.errors import ConfigError, StorageError
from txclf.data.sources import Source
from txclf.inference import bundle
from txclf.prediction import parts, predict
from txclf.prediction.columns import output_columns
from txclf.prediction.parts import ChunkKey, Count, PredictionPlan


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start `txclf predict` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "txclf", "predict", *arguments, "--chunk-rows", "100"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)]
)
def test_predict_interrupted_resumes_after_the_finished_chunks(
    tmp_path: Path, tiny_bundle: str, number: signal.Signals
) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", 8_000)
    whole = predict.predict(tiny_bundle, [path], out=str(tmp_path / "whole.csv"), chunk_rows=100)
    arguments = [tiny_bundle, path, "--out", str(tmp_path / "out.csv")]
    folder = tmp_path / ".out.csv.parts"
    child = start(*arguments)
    wait_until(lambda: len(part_files(folder)) > 30, child)
    child.send_signal(number)
    _, stderr = child.communicate()
    kept = part_files(folder)
    stamps = {name: (folder / name).stat().st_mtime_ns for name in kept}
    assert 30 < len(kept) < 80
    assert not (tmp_path / "out.csv").exists()
    if number != signal.SIGKILL:
        assert child.returncode == 128 + number
        assert "Run the same command again to resume" in stderr
    (folder / ".left-by-a-killed-writer").write_text("half")

    seen: list[int] = []
    done = predict.predict(
        tiny_bundle,
        [path],
        out=str(tmp_path / "out.csv"),
        chunk_rows=100,
        on_progress=lambda rows: seen.append(rows) or check_unchanged(folder, stamps),  # type: ignore[func-returns-value]
    )
    assert done == predict.PredictionSummary(8_000, 80, whole.columns, resumed_rows=100 * len(kept))
    assert seen[-1] == 8_000
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "out.csv.errors.jsonl").read_bytes() == (tmp_path / "whole.csv.errors.jsonl").read_bytes()
    assert not folder.exists()


def check_unchanged(folder: Path, stamps: dict[str, int]) -> None:
    """Check that the part files have the modification times `stamps`."""
    assert {name: (folder / name).stat().st_mtime_ns for name in stamps} == stamps


def test_predict_interrupted_with_other_arguments_raises(tmp_path: Path, tiny_bundle: str) -> None:
    path, out = write_jsonl(tmp_path / "in.jsonl", 300), str(tmp_path / "out.jsonl")
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
    write_jsonl(tmp_path / "in.jsonl", 301)
    with pytest.raises(ConfigError, match=r"with different inputs\. Rerun"):
        predict.predict(tiny_bundle, [path], out=out, chunk_rows=100)
    assert predict.predict(tiny_bundle, [path], out=out, chunk_rows=100, restart=True) == predict.PredictionSummary(
        301, 3, ["label", "probability"]
    )


def test_predict_interrupted_with_another_coverage_raises(tmp_path: Path, tiny_bundle: str) -> None:
    path, out = write_jsonl(tmp_path / "in.jsonl", 300), str(tmp_path / "out.jsonl")
    sets = with_quantiles(tiny_bundle, tmp_path, [0.5] * 19)
    with pytest.raises(Stop):
        predict.predict(sets, [path], out=out, chunk_rows=100, coverage=0.9, on_progress=stop)
    for other in (None, 0.95):
        with pytest.raises(ConfigError, match=r"an interrupted prediction with a different --coverage\. Rerun"):
            predict.predict(sets, [path], out=out, chunk_rows=100, coverage=other)
    assert predict.predict(sets, [path], out=out, chunk_rows=100, coverage=0.9).resumed_rows == 100


def test_predict_interrupted_with_a_changed_text_file_raises(tmp_path: Path, tiny_bundle: str) -> None:
    (tmp_path / "texts" / "any").mkdir(parents=True)
    text, out = tmp_path / "texts" / "any" / "a.txt", str(tmp_path / "out.csv")
    text.write_text("fox")
    with pytest.raises(Stop):
        predict.predict(tiny_bundle, [str(tmp_path / "texts")], out=out, on_progress=stop)
    text.write_text("another fox")  # the modification time of the folder does not change
    with pytest.raises(ConfigError, match=r"with different inputs\. Rerun"):
        predict.predict(tiny_bundle, [str(tmp_path / "texts")], out=out)


def test_read_long_texts_end_a_chunk_early(tmp_path: Path, tiny_bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_CHUNK_CHARS", 10 * len(LONG_TEXT))
    monkeypatch.setattr(parts, "READ_ROWS", 4)
    path = write_jsonl(tmp_path / "in.jsonl", 50)
    shown: list[int] = []
    predict.predict(tiny_bundle, [path], out=str(tmp_path / "out.parquet"), on_progress=shown.append)
    assert shown == [0, 12, 24, 36, 48, 50]
    assert pq.read_table(tmp_path / "out.parquet")["n"].to_pylist() == list(range(50))
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 1


PEAK = """
import re, sys
from pathlib import Path
from txclf.prediction import predict
done = predict.predict(sys.argv[1], [sys.argv[2]], out=sys.argv[3], chunk_rows=500)
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]  # of this process, not of its parent
print(done.rows, int(peak) // 1024)
"""


@pytest.mark.parametrize("ending", [pytest.param("csv", marks=pytest.mark.faults), "parquet"])
def test_predict_memory_does_not_grow_with_the_file(
    tmp_path: Path, tiny_bundle: str, ending: str, figure: Callable[[str], None]
) -> None:
    peaks = []
    for rows in (16_000, 48_000):
        path = write_jsonl(tmp_path / f"{rows}.jsonl", rows)
        command = [sys.executable, "-c", PEAK, tiny_bundle, path, str(tmp_path / f"out.{ending}")]
        done, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        assert done == rows
        peaks.append(peak)
    size = os.path.getsize(path) / 2**20
    figure(f"prediction of 16 and {size:.0f} MB into {ending}: peaks of {peaks[0]} and {peaks[1]} MB")
    assert peaks[1] - peaks[0] < size / 4


@pytest.mark.parametrize("chunk_rows", [1, 7, 300])
def test_read_yields_the_same_chunks_each_time(tmp_path: Path, chunk_rows: int) -> None:
    source = Source(write_jsonl(tmp_path / "in.jsonl", 25), "jsonl")
    chunks = list(parts.read(3, source, chunk_rows))
    assert [key for key, _ in chunks] == [ChunkKey(3, number) for number in range(-(-25 // chunk_rows))]
    assert [row for _, raw in chunks for row in raw.rows] == list(range(1, 26))
    assert list(parts.read(3, source, chunk_rows)) == chunks


def test_predict_at_once_into_one_file_never_mixes_rows(tmp_path: Path, tiny_bundle: str) -> None:
    inputs = [write_jsonl(tmp_path / f"in{number}.jsonl", 4_000 + number) for number in range(2)]
    out = tmp_path / "out.jsonl"
    call = "predict(sys.argv[1], [sys.argv[2]], out=sys.argv[3], chunk_rows=100)"
    imports = "from txclf.prediction.predict import predict"
    results = at_once(imports, call, [[tiny_bundle, path, str(out)] for path in inputs])
    assert sorted(code for code, _, _ in results) == [0, 1], results
    winner = [code for code, _, _ in results].index(0)
    assert re.search(rf"process \d+ on `.*` predicts into `{out}` since", results[1 - winner][2])
    rows = out.read_text().splitlines()
    assert len(rows) == 4_000 + winner
    alone = tmp_path / "alone.jsonl"
    assert predict.predict(tiny_bundle, [inputs[winner]], out=str(alone), chunk_rows=100).rows == len(rows)
    assert out.read_bytes() == alone.read_bytes()


def test_predict_taken_over_by_another_process_raises_and_writes_nothing(tmp_path: Path, tiny_bundle: str) -> None:
    path, out = write_jsonl(tmp_path / "in.jsonl", 300), tmp_path / "out.jsonl"

    def taken_over(rows: int) -> None:
        (tmp_path / ".out.jsonl.parts" / "lease.json").unlink(missing_ok=True)

    with pytest.raises(StorageError, match="another process took its work over"):
        predict.predict(tiny_bundle, [path], out=str(out), chunk_rows=100, on_progress=taken_over)
    assert not out.exists()


@pytest.fixture
def plan(tmp_path: Path, tiny_bundle: str) -> Iterator[PredictionPlan]:
    """Plan a prediction into JSON lines."""
    source = Source(write_jsonl(tmp_path / "first.jsonl", 1), "jsonl")
    (_, first), *_ = parts.read(0, source, 1)
    columns = output_columns(bundle.read_metadata(tiny_bundle), first, style="jsonl", probabilities=False, texts=None)
    with lease.held(str(tmp_path / "parts")) as holding:
        yield PredictionPlan(tiny_bundle, False, 100, columns, {}, holding)


def test_writer_writes_a_part_file_and_returns_its_count(tmp_path: Path, plan: PredictionPlan) -> None:
    source = Source(write_jsonl(tmp_path / "in.jsonl", 100), "jsonl")
    (chunk,) = parts.read(2, source, 100)
    assert plan.writer()(chunk) == (ChunkKey(2, 0), Count(rows=100, bad=1))
    assert part_files(tmp_path / "parts") == ["000002-00000000-100-1.jsonl"]


def test_writer_with_coverage_writes_prediction_sets(tmp_path: Path, plan: PredictionPlan, tiny_bundle: str) -> None:
    source = Source(write_jsonl(tmp_path / "in.jsonl", 1), "jsonl")
    (chunk,) = parts.read(0, source, 100)
    sets, kind = with_quantiles(tiny_bundle, tmp_path, [0.2] * 9), pa.list_(pa.string())
    columns = replace(plan.columns, added={**plan.columns.added, "labels_in_set": kind})
    plan = pickle.loads(pickle.dumps(replace(plan, model=sets, coverage=1.0, columns=columns)))
    plan.writer()(chunk)
    (name,) = part_files(tmp_path / "parts")
    (row,) = map(json.loads, (tmp_path / "parts" / name).read_text().splitlines())
    assert sorted(row["labels_in_set"]) == ["high", "low", "mid"]
