"""`train.pretrain_epochs`: the encoder is trained once, resumed like a run, and kept if validation says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import txclf
from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import go_on, lines, tiny, trained
from txclf import Classifier, ConfigError
from txclf.training import pretraining
from txclf.training.distill import require_teacher
from txclf.training.job import WorkerConfig
from txclf.training.progress import Interrupted, Progress
from txclf.training.train import check_folder, train

WORDS = ["train.pretrain_epochs=3", "train.epochs=1"]


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [[text] for text, _ in make_rows(200, seed=5)]
    return write_csv(tmp_path_factory.mktemp("unlabelled") / "more.csv", rows, header=["text"])


def encoders(folder: Path) -> list[Path]:
    return sorted(folder.glob("prepared/*/pretraining-*"))


def test_run_learns_from_unlabelled_texts_and_says_what_it_brought(tmp_path: Path, data: str, unlabelled: str) -> None:
    run, summary = trained(tmp_path, data, *WORDS, f"data.unlabelled={unlabelled}")
    effect = summary.pretraining
    assert effect is not None
    manifest = WorkerConfig(run, summary.prepared).manifest()
    assert effect.rows == manifest.splits["train"].rows + 200
    (folder,) = encoders(tmp_path)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["valid_loss"] for line in log if "valid_loss" in line]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert effect.loss == min(losses)
    assert effect.value is not None
    assert effect.value_from_scratch is not None
    assert effect.kept == (effect.value <= effect.value_from_scratch)
    best = min(line["valid_calibrated_loss"] for line in lines(run) if "valid_loss" in line)
    assert best == min(effect.value, effect.value_from_scratch)  # the log is that of the bundled model
    assert Classifier.load(f"{run.run_folder}/model").labels == ["neg", "pos"]


def test_model_starts_from_the_encoder(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, *WORDS, "train.learning_rate=1e-20", "train.weight_decay=0")
    train(run, txclf.prepare(run), go_on, is_trial=True)
    (folder,) = encoders(tmp_path)
    encoder = load_file(folder / "encoder.safetensors")
    bundle = load_file(f"{run.run_folder}/model/model.safetensors")
    assert set(encoder) < set(bundle)
    for name, weights in encoder.items():
        assert weights == pytest.approx(bundle[name], abs=1e-12), name


def test_runs_on_the_same_data_share_the_encoder(tmp_path: Path, data: str) -> None:
    trained(tmp_path, data, *WORDS)
    (folder,) = encoders(tmp_path)
    written = (folder / "encoder.safetensors").stat().st_mtime_ns
    assert not (folder / "checkpoints").exists()
    trained(tmp_path, data, *WORDS, "name=other", "train.learning_rate=1e-3", "model.dropout=0.3")
    assert encoders(tmp_path) == [folder]
    assert (folder / "encoder.safetensors").stat().st_mtime_ns == written
    trained(tmp_path, data, *WORDS, "name=third", "model.hidden_size=8")
    assert len(encoders(tmp_path)) == 2


@pytest.mark.parametrize("where", ["encoder", "from the encoder", "from random weights"])
def test_stopped_run_resumes_to_the_same_encoder_and_model(tmp_path: Path, data: str, where: str) -> None:
    words = [*WORDS, "train.epochs=3"]
    whole, summary = trained(tmp_path / "whole", data, *words)
    run = tiny(tmp_path / "parts", data, *words)

    def stop(progress: Progress) -> bool:
        compares = any("from random weights" in note for note in progress.notes)
        stage = (
            "encoder" if progress.stage == "preparing" else "from random weights" if compares else "from the encoder"
        )
        return stage == where and progress.step > 0

    with pytest.raises(Interrupted):
        train(run, txclf.prepare(run), stop)
    check_folder(run, resume=True)
    resumed = train(run, txclf.prepare(run), go_on)
    assert resumed.pretraining == summary.pretraining
    folders = [encoders(tmp_path / name)[0] for name in ("whole", "parts")]
    assert len({(folder / "encoder.safetensors").read_bytes() for folder in folders}) == 1
    weights = [Path(one.run_folder, "model", "model.safetensors").read_bytes() for one in (whole, run)]
    assert weights[0] == weights[1]


def test_model_from_scratch_is_bundled_if_it_is_better(tmp_path: Path, data: str) -> None:
    """An encoder with weights of the other sign, three times as large, is of no use."""
    run = tiny(tmp_path, data, *WORDS, "train.epochs=4")
    prepared = txclf.prepare(run)
    config = pretraining.ready(WorkerConfig(run, prepared), go_on, [])
    spoiled = Path(str(config.pretrained_encoder))
    save_file({name: -3 * weights for name, weights in load_file(spoiled).items()}, spoiled)
    check_folder(run, resume=True)
    summary = train(run, prepared, go_on)
    assert summary.pretraining is not None
    assert not summary.pretraining.kept
    plain, plain_summary = trained(tmp_path / "plain", data, "train.epochs=4")
    assert summary.best == plain_summary.best
    assert lines(run) == lines(plain)
    weights = [Path(one.run_folder, "model", "model.safetensors").read_bytes() for one in (run, plain)]
    assert weights[0] == weights[1]
    own = Path(run.run_folder, "own-metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in own] != lines(run)
    # With more epochs both train on, each with its own log.
    longer = txclf.load_config(run.model_dump(exclude_unset=True), ["train.epochs=5"])
    seen: list[str] = []

    def watch(progress: Progress) -> bool:
        if progress.stage == "training" and not progress.step % 17:
            seen.append(Path(run.run_folder, "metrics.jsonl").read_text())
        return False

    check_folder(longer, resume=True)
    train(longer, prepared, watch)
    assert seen[0].splitlines() == own


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=seq2seq"], "not supported with `task: seq2seq`"),
        (["model.word_vectors=vectors.txt", "tokenizer.kind=word"], "exclude each other"),
    ],
)
def test_pretraining_is_refused_where_it_has_no_meaning(
    tmp_path: Path, data: str, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(tmp_path, data, *WORDS, *words)


def test_pretrained_model_has_no_need_of_it(tmp_path: Path, data: str) -> None:
    with pytest.raises(ConfigError, match=r"`train\.pretrain_epochs` is for a model from scratch"):
        txclf.load_config({"model": {"pretrained": "x"}, "train": {"pretrain_epochs": 1}})


def test_unlabelled_rows_need_a_teacher_or_pretraining(tmp_path: Path, data: str, unlabelled: str) -> None:
    require_teacher(tiny(tmp_path, data, *WORDS, f"data.unlabelled={unlabelled}"))
    with pytest.raises(ConfigError, match="a teacher or pre-training"):
        require_teacher(tiny(tmp_path, data, f"data.unlabelled={unlabelled}"))
