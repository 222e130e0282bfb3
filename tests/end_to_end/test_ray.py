"""Preparing and training on Ray give the results of one process, on any number of workers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.files import make_rows, read
from tests.helpers.runs import go_on, lines, losses, prepare_here, tiny, trained
from tests.helpers.waiting import PATIENCE_S
from txclf import Classifier, ray_cluster
from txclf.artifacts import checkpoints
from txclf.config.sections import Compute
from txclf.core import storage
from txclf.core.errors import ClusterError, DataError
from txclf.data import shards
from txclf.data.batches import TokenRows
from txclf.data.prepare import prepare
from txclf.training.progress import Interrupted, Progress
from txclf.training.train import train

pytestmark = [
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


def test_prepare_on_ray_gives_the_same_shards(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txclf.data.prepare.SHARD_BYTES", 3_000)
    here = prepare(tiny(tmp_path / "here", data))
    there = prepare(tiny(tmp_path / "there", data, "compute.workers=1"))
    for split in ("train", "valid"):
        assert read(here, split) == read(there, split)
    one, two = shards.load_manifest(here), shards.load_manifest(there)
    assert one == two
    assert len(one.splits["train"].shards) > 3


def test_prepare_on_ray_of_two_small_files_gives_one_shard(tmp_path: Path, data: str) -> None:
    rows = Path(data).read_text().splitlines()
    for name, part in (("a", rows[1:100]), ("b", rows[100:])):
        (tmp_path / f"{name}.csv").write_text("\n".join([rows[0], *part, ""]))
    words = [f"data.train=[{tmp_path}/a.csv, {tmp_path}/b.csv]"]
    here = shards.load_manifest(prepare(tiny(tmp_path / "here", data, *words)))
    there = shards.load_manifest(prepare(tiny(tmp_path / "there", data, *words, "compute.workers=1")))
    assert here == there
    assert len(here.splits["train"].shards) == 1


def test_prepare_on_ray_names_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nsome text,a\n,b\n")
    with pytest.raises(DataError, match=r"a\.csv: row 2: no text"):
        prepare(tiny(tmp_path, str(path), "compute.workers=1"))


def test_prepare_on_ray_raises_the_error_of_one_process(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,labels\nsome text,a\n")
    with pytest.raises(DataError) as here:
        prepare(tiny(tmp_path / "here", str(path)))
    with pytest.raises(DataError) as there:
        prepare(tiny(tmp_path / "there", str(path), "compute.workers=1"))
    assert "no column `label`" in str(here.value)
    assert str(there.value) == str(here.value)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, data: str) -> tuple[list[float], list[float]]:
    """Training losses and validation losses of the run in this process, without dropout."""
    run, _ = trained(tmp_path_factory.mktemp("here"), data, "model.dropout=0")
    return losses(run), [line["valid_loss"] for line in lines(run) if "valid_loss" in line]


@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.faults), pytest.param(2, marks=pytest.mark.faults), 3]
)
def test_train_on_n_workers_takes_the_same_steps(
    tmp_path: Path, data: str, here: tuple[list[float], list[float]], workers: int
) -> None:
    # 16 rows a step on 3 workers: 6, 5 and 5 rows; the mean is over the 16 all the same.
    words = ["model.dropout=0", f"compute.workers={workers}", "compute.cpus_per_worker=0.5"]
    run, summary = trained(tmp_path, data, *words)
    assert summary.workers == workers
    np.testing.assert_allclose(losses(run), here[0], rtol=2e-3)
    validations = [line for line in lines(run) if "valid_loss" in line]
    np.testing.assert_allclose([line["valid_loss"] for line in validations], here[1], rtol=2e-3)
    manifest = shards.load_manifest(summary.prepared)
    assert {line["valid_rows"] for line in validations} == {manifest.splits["valid"].rows}
    assert summary.rows_seen == len(losses(run)) * 16
    assert not storage.exists(f"{run.run_folder}/.ray")


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.faults)])
def test_encoder_learns_from_masked_tokens_on_two_workers_as_in_one_process(
    tmp_path: Path, data: str, strategy: str
) -> None:
    words = ["model.dropout=0", "train.epochs=1", "train.pretrain_epochs=2", "train.train_on_valid=true"]
    single, alone = trained(tmp_path / "alone", data, *words)
    two = ["compute.workers=2", "compute.cpus_per_worker=0.5", f"compute.strategy={strategy}"]
    run, summary = trained(tmp_path / "two", data, *words, *two)
    (log,) = (tmp_path / "two").glob("prepared/*/pretraining-*/metrics.jsonl")
    (expected,) = (tmp_path / "alone").glob("prepared/*/pretraining-*/metrics.jsonl")
    entries = [[json.loads(line) for line in one.read_text().splitlines()] for one in (log, expected)]
    found, wanted = ([line["train_loss"] for line in each if "train_loss" in line] for each in entries)
    np.testing.assert_allclose(found, wanted, rtol=2e-3)
    assert summary.pretraining is not None
    assert alone.pretraining is not None
    assert summary.pretraining.rows == alone.pretraining.rows
    np.testing.assert_allclose(summary.pretraining.loss, alone.pretraining.loss, rtol=2e-3)
    np.testing.assert_allclose(losses(run)[0], losses(single)[0], rtol=2e-3)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.faults)])
def test_validation_on_more_workers_than_rows_scores_each_once(tmp_path: Path, data: str, strategy: str) -> None:
    valid = tmp_path / "valid.csv"
    valid.write_text("text,label\nthe good film,pos\nbad plot,neg\n")
    words = ["compute.workers=3", "compute.cpus_per_worker=0.5", f"compute.strategy={strategy}", "model.dropout=0"]
    run, summary = trained(tmp_path, data, *words, f"data.valid={valid}", "train.epochs=1")
    here, _ = trained(tmp_path, data, "name=here", "model.dropout=0", f"data.valid={valid}", "train.epochs=1")
    one, two = lines(run)[-1], lines(here)[-1]
    assert summary.workers == 3
    assert one["valid_rows"] == two["valid_rows"] == 2
    assert one["valid_loss"] == pytest.approx(two["valid_loss"], rel=2e-3)


@pytest.mark.faults
def test_fsdp_takes_the_same_steps_after_a_stop(
    tmp_path: Path, data: str, here: tuple[list[float], list[float]]
) -> None:
    words = ["model.dropout=0", "compute.workers=2", "compute.cpus_per_worker=0.5", "compute.strategy=fsdp"]
    run = tiny(tmp_path, data, *words, "train.ema_decay=0.5")
    prepared = prepare_here(run)
    with pytest.raises(Interrupted):
        train(run, prepared, lambda progress: progress.step >= 2)
    summary = train(run, prepared, go_on)
    assert summary.attempts == 2
    np.testing.assert_allclose(losses(run), here[0], rtol=2e-3)
    manifest = shards.load_manifest(prepared)
    table = shards.read_split(prepared, manifest, "valid", ["input_ids", "label"])
    logits = Classifier.load(f"{run.run_folder}/model").logits(TokenRows([table]))
    accuracy = float(np.mean(logits.argmax(axis=1) == table["label"].to_numpy()))
    assert accuracy == pytest.approx(summary.best["valid_accuracy"], abs=1e-6)


@pytest.mark.faults
def test_balanced_sampling_focal_loss_and_calibration_on_ray_are_the_same(tmp_path: Path, data: str) -> None:
    words = ["model.dropout=0", "train.sampling=balanced", "train.focal_gamma=2", "train.average_checkpoints=2"]
    here, one = trained(tmp_path, data, "name=here", *words)
    run, two = trained(tmp_path, data, *words, "compute.workers=2", "compute.cpus_per_worker=0.5")
    np.testing.assert_allclose(losses(run), losses(here), rtol=2e-3)
    assert one.calibration
    assert two.calibration
    assert two.calibration.rows == one.calibration.rows
    assert two.calibration.temperature == pytest.approx(one.calibration.temperature, rel=0.02) != 1.0
    assert len(one.averaged) == len(two.averaged)
    assert two.best["valid_loss"] == pytest.approx(one.best["valid_loss"], rel=2e-3)


@pytest.mark.faults
def test_windows_columns_and_word_vectors_on_ray_are_the_same(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    written = [f"{text},{label} or not,{label}" for text, label in make_rows(200)]
    rows.write_text("text,more,label\n" + "\n".join(written) + "\n")
    table = tmp_path / "vectors.txt"
    draw = np.random.default_rng(0)
    words = ["the", "film", "good", "bad", "plot", "or", "not"]
    table.write_text(
        "".join(f"{word} {' '.join(f'{value:.3f}' for value in draw.normal(size=16))}\n" for word in words)
    )
    settings = [
        "data.text=[text,more]",
        "data.truncation=windows",
        "data.window_overlap=1",
        "tokenizer.kind=word",
        "tokenizer.max_length=4",
        f"model.word_vectors={table}",
        "model.freeze_word_vectors=true",
        "model.dropout=0",
        "train.epochs=1",
    ]
    here, one = trained(tmp_path, str(rows), "name=here", *settings)
    run, two = trained(tmp_path, str(rows), *settings, "compute.workers=2", "compute.cpus_per_worker=0.5")
    np.testing.assert_allclose(losses(run), losses(here), rtol=2e-3)
    assert two.best["valid_loss"] == pytest.approx(one.best["valid_loss"], rel=2e-3)
    texts = [("the good film", "or not"), ("a bad plot of the film and more than a window holds", "bad or not")]
    found = [Classifier.load(f"{folder.run_folder}/model").probabilities(texts) for folder in (here, run)]
    np.testing.assert_allclose(found[0], found[1], rtol=5e-3)


@pytest.mark.faults
def test_gradient_dtype_bf16_trains(tmp_path: Path, data: str, here: tuple[list[float], list[float]]) -> None:
    words = ["model.dropout=0", "compute.workers=2", "compute.cpus_per_worker=0.5", "compute.gradient_dtype=bf16"]
    run, _ = trained(tmp_path, data, *words, "train.epochs=1")
    found, expected = np.array(losses(run)), np.array(here[0][: len(losses(run))])
    # The first loss comes before any exchange; Adam's first steps make much of small differences of small gradients.
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=5e-2)
    assert not np.allclose(found, expected, rtol=1e-6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_fsdp_over_nccl_trains(tmp_path: Path, data: str, here: tuple[list[float], list[float]]) -> None:
    words = ["model.dropout=0", "compute.workers=2", "compute.gpus_per_worker=1", "compute.strategy=fsdp"]
    run, summary = trained(tmp_path, data, *words, "train.precision=fp32")
    assert summary.device != "cpu"
    np.testing.assert_allclose(losses(run), here[0], rtol=1e-2)


@pytest.mark.faults
def test_stop_request_saves_a_checkpoint_and_resumes(tmp_path: Path, data: str) -> None:
    words = ["compute.workers=2", "compute.cpus_per_worker=0.5", "train.epochs=40", "train.early_stopping_patience=0"]
    run = tiny(tmp_path, data, *words)
    prepared = prepare_here(run)
    with pytest.raises(Interrupted):
        train(run, prepared, lambda progress: progress.step >= 20)
    (*_, last) = checkpoints.committed(f"{run.run_folder}/checkpoints")
    assert 20 <= last.step < 40 * 16
    shown: list[Progress] = []

    def watch(progress: Progress) -> bool:
        shown.append(progress)
        return False

    summary = train(run, prepared, watch)
    assert shown[-1].step == shown[-1].total_steps == summary.steps
    assert [line["step"] for line in lines(run) if "train_loss" in line] == list(range(1, summary.steps + 1))


def test_require_too_many_workers_raises_with_the_arithmetic(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, "compute.workers=4")
    start = time.monotonic()
    with pytest.raises(ClusterError, match=r"\(4\) x `compute.cpus_per_worker` \(1\) = 4 CPUs, but Ray has 3"):
        train(run, prepare_here(run), go_on)
    with pytest.raises(ClusterError, match="1 GPUs, but Ray has 0"):
        ray_cluster.require(Compute(workers=1, gpus_per_worker=1))
    assert time.monotonic() - start < 60
    assert not storage.exists(run.run_folder)


def test_worker_error_keeps_its_type(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, "compute.workers=1")
    prepared = prepare_here(run)
    (shard,) = Path(prepared, "train").iterdir()
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(DataError, match=shard.name):
        train(run, prepared, go_on)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_connected_unreachable_address_raises(address: str) -> None:
    code = f"""
from txclf import ray_cluster
from txclf.config.sections import Compute
with ray_cluster.connected(Compute(workers=1, address="{address}")):
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_S, check=False, capture_output=True, text=True)
    assert f"ClusterError: Ray at `{address}` cannot be joined" in done.stderr
