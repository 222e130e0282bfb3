"""Training in this process: reproducible, interruptible, resumable; what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import go_on, lines, losses, stopped_at, tiny, trained
from txclf import Classifier
from txclf.artifacts import checkpoints, run_folder
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError, StorageError, TxclfError
from txclf.data import shards
from txclf.data.batches import TokenRows
from txclf.data.prepare import prepare
from txclf.training import callbacks
from txclf.training.job import WorkerConfig
from txclf.training.progress import Progress
from txclf.training.train import check_fit, check_folder, train


def test_train_writes_every_file_of_the_run_folder(tmp_path: Path, data: str) -> None:
    run, summary = trained(tmp_path, data)
    folder = Path(run.run_folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "run.yaml",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
        "model",
        "summary.json",
        "prepared.json",
        "attempts.jsonl",
    }
    assert run_config.load(folder / "run.yaml") == run
    manifest = shards.load_manifest(summary.prepared)
    steps = manifest.splits["train"].rows // 16
    assert (summary.steps, summary.rows_seen) == (2 * steps, 2 * steps * 16)
    log = lines(run)
    assert [line["step"] for line in log if "train_loss" in line] == list(range(1, 2 * steps + 1))
    validations = [line for line in log if "valid_loss" in line]
    assert [line["epoch"] for line in validations] == [1.0, 2.0]
    assert all(line["valid_rows"] == manifest.splits["valid"].rows for line in validations)
    assert losses(run)[-1] < losses(run)[0]
    assert list((folder / "tensorboard").iterdir())


def test_train_bundles_the_best_checkpoint(tmp_path: Path, data: str) -> None:
    run, summary = trained(tmp_path, data, "train.monitor=valid_accuracy")
    manifest = shards.load_manifest(summary.prepared)
    table = shards.read_split(summary.prepared, manifest, "valid", ["input_ids", "label"])
    logits = Classifier.load(f"{run.run_folder}/model").logits(TokenRows([table]))
    accuracy = float(np.mean(logits.argmax(axis=1) == table["label"].to_numpy()))
    best = max(line["valid_accuracy"] for line in lines(run) if "valid_accuracy" in line)
    assert accuracy == pytest.approx(best, abs=1e-6)
    assert summary.best["valid_accuracy"] == pytest.approx(best)


def test_train_same_seed_gives_bit_identical_losses(tmp_path: Path, data: str) -> None:
    one, _ = trained(tmp_path, data, "name=one")
    two, _ = trained(tmp_path, data, "name=two")
    other, _ = trained(tmp_path, data, "name=other", "seed=2")
    assert lines(one) == lines(two)
    assert losses(one)[0] != losses(other)[0]


def test_train_micro_batches_take_the_same_steps(tmp_path: Path, data: str) -> None:
    one, _ = trained(tmp_path, data, "name=one", "model.dropout=0")
    three, _ = trained(tmp_path, data, "name=three", "model.dropout=0", "train.micro_batches=3")
    np.testing.assert_allclose(losses(one), losses(three), rtol=2e-4)


def test_train_gives_the_golden_losses(tmp_path: Path, data: str) -> None:
    # A refactor keeps these. They change only when data order, model, loss or optimizer do, and then on purpose.
    run, _ = trained(tmp_path, data, "model.dropout=0.1")
    golden = """
        0.671976 0.866770 0.628850 0.839941 0.603505 0.527140 0.560462 0.438129 0.619114 0.449863
        0.426523 0.391320 0.556930 0.634534 0.529079 0.486511 0.468378 0.259262 0.693704 0.370523
    """
    np.testing.assert_allclose(losses(run)[:20], [float(loss) for loss in golden.split()], rtol=1e-3)


def test_train_ema_is_validated_and_bundled(tmp_path: Path, data: str) -> None:
    plain, _ = trained(tmp_path, data, "name=plain")
    averaged, summary = trained(tmp_path, data, "name=averaged", "train.ema_decay=0.9")
    assert losses(plain) == losses(averaged)
    manifest = shards.load_manifest(summary.prepared)
    table = shards.read_split(summary.prepared, manifest, "valid", ["input_ids", "label"])
    logits = Classifier.load(f"{averaged.run_folder}/model").logits(TokenRows([table])).astype(np.float64)
    labels = table["label"].to_numpy()
    loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels])
    assert summary.best["valid_loss"] == pytest.approx(loss, abs=1e-5)
    assert summary.best["valid_loss"] != lines(plain)[-1]["valid_loss"]


def test_train_stops_early_and_keeps_the_best_checkpoints(tmp_path: Path, data: str) -> None:
    words = [
        "train.epochs=30",
        "train.early_stopping_patience=2",
        "train.learning_rate=0.3",
        "train.keep_checkpoints=1",
    ]
    run, summary = trained(tmp_path, data, *words, "train.monitor=valid_loss")
    assert summary.stopped_early
    validations = [line["valid_loss"] for line in lines(run) if "valid_loss" in line]
    assert len(validations) - 1 - int(np.argmin(validations)) == 2
    steps = {saved.step for saved in checkpoints.committed(f"{run.run_folder}/checkpoints")}
    assert steps == {summary.best_step, summary.steps}
    # A run that was stopped early and lost its summary does not train on.
    Path(run.run_folder, "summary.json").unlink()
    assert train(run, prepare(run), go_on).steps == summary.steps


def test_train_runs_with_class_weights_smoothing_and_every_schedule(tmp_path: Path, data: str) -> None:
    for schedule in ("cosine", "linear", "constant"):
        words = ["train.class_weights={pos: 2}", "train.label_smoothing=0.1", f"train.schedule={schedule}"]
        _, summary = trained(tmp_path, data, f"name={schedule}", "train.epochs=1", *words)
        assert summary.best["valid_loss"] < 0.8


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """400 rows of which about one in sixteen is `neg`."""
    rows = [(f"{text} {'good' if label == 'pos' else 'bad'}", label) for text, label in make_rows(800)]
    rare = [row for row in rows if row[1] == "neg"][:25]
    return write_csv(tmp_path_factory.mktemp("skewed") / "train.csv", [row for row in rows if row[1] == "pos"] + rare)


def test_train_balanced_run_resumes_to_the_same_losses(tmp_path: Path, skewed: str) -> None:
    words = ["train.sampling=balanced", "train.focal_gamma=2", "train.token_dropout=0.1"]
    whole, summary = trained(tmp_path, skewed, "name=whole", *words)
    stopped = tiny(tmp_path, skewed, "name=stopped", *words)
    stopped_at(stopped, 7)
    train(stopped, prepare(stopped), go_on)
    assert lines(stopped) == lines(whole)
    manifest = shards.load_manifest(summary.prepared)
    assert summary.steps == 2 * (manifest.splits["train"].rows // 16)


def test_train_balanced_sampling_and_focal_loss_help_rare_classes(tmp_path: Path, skewed: str) -> None:
    every = [
        losses(trained(tmp_path, skewed, f"name=run{number}", "train.epochs=1", *words)[0])
        for number, words in enumerate([[], ["train.sampling=balanced"], ["train.focal_gamma=2"]])
    ]
    assert len({tuple(one) for one in every}) == 3
    # The first step has the same rows and weights: focal loss is the smaller one.
    assert every[2][0] < every[0][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.batch_size=5000"], r"`train.batch_size` \(5000\) is larger than the training split"),
        (["train.batch_size=2", "train.micro_batches=4"], "is less than `compute.workers`"),
        (["train.class_weights={nope: 2}"], "`nope` is not a label"),
    ],
)
def test_check_fit_impossible_batches_raises(tmp_path: Path, data: str, words: Sequence[str], message: str) -> None:
    run = tiny(tmp_path, data, *words)
    with pytest.raises(ConfigError, match=message):
        train(run, prepare(run), go_on)
    assert not storage.exists(run.run_folder)


@pytest.mark.parametrize(
    ("workers", "gpus", "message"),
    [
        (2, 0.5, r"`compute.gpus_per_worker` \(0.5\): the workers of a run cannot share a GPU. Set it to 1, or"),
        ((1, 3), 0.5, "cannot share a GPU"),
        (1, 4, r"`compute.gpus_per_worker` \(4\): a worker trains on one GPU. Set it to 1, and `compute.workers`"),
        (1, 0.5, None),
        (2, 1, None),
        (0, 4, None),
    ],
)
def test_check_fit_gpus_that_workers_cannot_use_raises(
    tmp_path: Path, data: str, workers: int | tuple[int, int], gpus: float, message: str | None
) -> None:
    run = tiny(tmp_path, data)
    manifest = shards.load_manifest(prepare(run))
    run = run_config.with_overrides(run, {"compute.workers": workers, "compute.gpus_per_worker": gpus})
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        check_fit(run, manifest)


def test_check_folder_unwritable_storage_raises(tmp_path: Path, data: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot be written"):
        check_folder(tiny(tmp_path / "file", data), resume=False)


def test_train_non_finite_gradient_stops_and_keeps_checkpoints(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, "train.learning_rate=1e30", "train.max_grad_norm=0", "train.checkpoint_every=1")
    with pytest.raises(
        TxclfError, match=r"not finite at step 2 \(epoch 0\.12; .*rows \d+, \d+.* of the prepared"
    ) as info:
        train(run, prepare(run), go_on)
    assert info.value.exit_code == 2
    (saved,) = checkpoints.committed(f"{run.run_folder}/checkpoints")
    assert saved.step == 1
    assert not storage.exists(f"{run.run_folder}/summary.json")


def poisoned(folder: Path, *words: str) -> tuple[RunConfig, int]:
    """Return a stopped run and the number of its remaining steps without a finite gradient.

    Its checkpoint has a NaN embedding, of a word of two training rows.
    """
    rows = make_rows(250)
    train_file = write_csv(folder / "train.csv", [*rows, ("the zebra", "pos"), ("a zebra film", "neg")])
    valid_file = write_csv(folder / "valid.csv", rows[:50])
    run = tiny(folder, train_file, f"data.valid={valid_file}", "tokenizer.kind=word", *words)
    stopped_at(run, 3)
    (saved,) = checkpoints.committed(f"{run.run_folder}/checkpoints")
    prepared = prepare(run)
    token = Tokenizer.from_file(f"{prepared}/tokenizer.json").token_to_id("zebra")
    state = checkpoints.load(saved)
    state["model"]["embedding.weight"][token] = float("nan")
    checkpoints.save(f"{run.run_folder}/checkpoints", saved.step, {}, state)
    table = shards.read_split(prepared, shards.load_manifest(prepared), "train", ["input_ids", "label"])
    tokens = TokenRows([table])
    reader = WorkerConfig(run, prepared).train_reader()
    steps = range(saved.step, run.train.epochs * reader.windows.steps_per_epoch)
    return run, sum(token in tokens.batch(reader.step_rows(step))["input_ids"] for step in steps)


def test_train_skipped_steps_are_counted_and_change_no_weights(tmp_path: Path) -> None:
    run, spoiled = poisoned(tmp_path, "train.on_nan=skip", "train.epochs=4")
    assert 0 < spoiled <= 8
    summary = train(run, prepare(run), go_on)
    assert summary.steps_skipped == spoiled
    assert losses(run).count(None) == spoiled
    assert np.isfinite(summary.best["valid_loss"])


def test_train_without_skipping_names_the_first_bad_step(tmp_path: Path) -> None:
    run, _ = poisoned(tmp_path, "train.epochs=4")
    with pytest.raises(TxclfError, match="not finite at step"):
        train(run, prepare(run), go_on)


@pytest.mark.parametrize(
    ("every", "steps"), [("5", {5, 10, 15}), ("0.25", {4, 8, 12, 16}), ("0.001s", set(range(1, 17))), ("1h", set())]
)
def test_train_checkpoints_by_steps_share_or_time(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch, every: str, steps: set[int]
) -> None:
    run = tiny(tmp_path, data, "train.epochs=1", f"train.checkpoint_every={every}")
    saved, stages = set[int](), dict[str, int]()

    def watch(progress: Progress) -> bool:
        stages[progress.stage] = progress.step
        saved.update(checkpoint.step for checkpoint in checkpoints.committed(f"{run.run_folder}/checkpoints"))
        return False

    monkeypatch.setattr(callbacks, "REPORT_INTERVAL_S", 0.0)
    summary = train(run, prepare(run), watch)
    saved.update(checkpoint.step for checkpoint in checkpoints.committed(f"{run.run_folder}/checkpoints"))
    assert list(stages) == ["training", "validating", "bundling"]
    assert stages["bundling"] == summary.steps
    assert saved | {summary.steps} == {step for step in steps if step <= summary.steps} | {summary.steps}


def test_train_note_says_how_the_rows_are_shuffled(tmp_path: Path, data: str) -> None:
    notes: list[str] = []

    def listen(progress: Progress) -> bool:
        notes.extend(progress.notes)
        return False

    for words in ([], ["name=windows", "data.shuffle_window=1000"]):
        run = tiny(tmp_path, data, *words)
        train(run, prepare(run), listen)
    found = [note for note in dict.fromkeys(notes) if note.startswith("training data: ")]
    windows = WorkerConfig(run, prepare(run)).train_reader().windows.windows_per_epoch
    expected = ["shuffled as a whole", f"shuffled in {windows} windows an epoch"]
    assert windows > 1
    assert [note.split(", ")[-1] for note in found] == expected


@pytest.mark.parametrize("window", [2**24, 1000])
def test_train_on_valid_uses_the_validation_rows(tmp_path: Path, data: str, window: int) -> None:
    words = [
        "train.train_on_valid=true",
        "train.epochs=6",
        "train.early_stopping_patience=1",
        "train.learning_rate=0.03",
    ]
    run, summary = trained(tmp_path, data, *words, f"data.shuffle_window={window}")
    assert summary.steps == 6 * (300 // 16)
    assert (summary.best_step, summary.best) == (summary.steps, {})
    state = run_folder.read_run(run.run_folder)
    assert (state.best, state.scores) == (None, {})
    assert summary.model == f"{run.run_folder}/model"
    (*_, last) = checkpoints.committed(f"{run.run_folder}/checkpoints")
    description = json.loads(Path(run.run_folder, "model/model.json").read_text())
    assert description["rows"] == {"train": 300}
    assert description["metrics"] == {}
    weights = load_file(f"{run.run_folder}/model/model.safetensors")
    saved = checkpoints.load(last)["model"]
    assert all(torch.equal(weights[name], saved[name]) for name in weights)
