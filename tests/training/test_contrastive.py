"""`train.contrastive_steps`: the encoder learns once which rows have one label, and the head trains on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoTokenizer, pipeline

import txclf
from tests.helpers.encoders import as_sentence_encoder, make_run, write_encoder
from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import go_on
from txclf import ConfigError, Interrupted
from txclf.config.run_config import RunConfig
from txclf.training import contrastive
from txclf.training.contrastive import PAIRS, pairs
from txclf.training.progress import Progress
from txclf.training.train import check_folder, train

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a csv file of 60 rows of two labels."""
    return write_csv(tmp_path_factory.mktemp("few") / "train.csv", make_rows(60))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return as_sentence_encoder(write_encoder(tmp_path_factory.mktemp("encoder")))


def short(folder: Path, data: str, encoder: str, *words: str) -> RunConfig:
    return make_run(folder, data, encoder, "train.contrastive_steps=8", "model.freeze=encoder", *words)


def taught(prepared: str) -> list[Path]:
    return sorted(Path(prepared).glob("contrastive-*/model.safetensors"))


@torch.no_grad()
def contrast(folder: str, data: str) -> float:
    """Return the mean cosine of rows of one label less that of rows of different labels."""
    make: Any = AutoTokenizer.from_pretrained
    tokenizer, model = make(folder), AutoModel.from_pretrained(folder).eval()
    rows = make_rows(60)
    vectors = [
        model(**tokenizer(text, return_tensors="pt", truncation=True, padding=False, max_length=16))
        .last_hidden_state[0]
        .mean(dim=0)
        for text, _ in rows
    ]
    units = torch.nn.functional.normalize(torch.stack(vectors), dim=1)
    cosines, labels = (units @ units.T).numpy(), np.array([label for _, label in rows])
    same = labels[:, None] == labels
    return float(cosines[same].mean() - cosines[~same].mean())


def test_pairs_have_each_row_first_equally_often_and_one_label_where_they_say() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    found = list(pairs(labels, 40, seed=3))
    first, second = (np.concatenate([getattr(step, name) for step in found]) for name in ("first", "second"))
    same = np.concatenate([step.same for step in found])
    assert np.bincount(first).tolist() == [40 * PAIRS // 8] * 8
    assert ((labels[first] == labels[second]) == same).all()
    assert (first != second).all()
    assert 0.4 < same.mean() < 0.6
    again = list(pairs(labels, 40, seed=3))
    assert all((one.second == two.second).all() for one, two in zip(found, again, strict=True))


def test_pairs_of_a_label_of_one_row_and_of_a_single_label() -> None:
    for step in pairs(np.array([0, 1, 1]), 20, seed=0):
        alone = step.same & (step.first == 0)
        assert (step.second[alone] == 0).all()
    assert all(step.same.all() for step in pairs(np.array([1, 1, 1]), 5, seed=0))


def test_rows_of_one_label_come_closer_and_the_bundle_has_that_encoder(
    tmp_path: Path, few: str, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "LEARNING_RATE", 5e-3)  # the model is tiny and its weights are random
    run = make_run(tmp_path, few, encoder, "train.contrastive_steps=300", "model.freeze=encoder", "train.epochs=20")
    summary = txclf.train(run)
    (weights,) = taught(summary.prepared)
    assert contrast(str(weights.parent), few) > contrast(encoder, few) + 0.03
    bundle = load_file(f"{run.run_folder}/model/model.safetensors")
    for name, value in load_file(weights).items():
        if "pooler" not in name:
            np.testing.assert_array_equal(bundle[f"bert.{name}"], value)
    texts = [text for text, _ in make_rows(10)]
    classifier = txclf.Classifier.load(f"{run.run_folder}/model")
    classify: Any = pipeline("text-classification", model=f"{run.run_folder}/model", device="cpu")
    found = np.array(classifier.labels)[classifier.probabilities([(text,) for text in texts]).argmax(axis=1)]
    assert found.tolist() == [answer["label"] for answer in classify(texts, truncation=True, max_length=16)]


def test_few_rows_of_a_sentence_encoder_learn_from_pairs_unless_the_run_file_says_otherwise(
    tmp_path: Path, few: str, encoder: str
) -> None:
    run = make_run(tmp_path, few, encoder)
    seen: list[str] = []

    def stop(progress: Progress) -> bool:
        seen.extend(progress.notes)
        return progress.stage == "preparing"

    with pytest.raises(Interrupted):
        train(run, txclf.prepare(run), stop)
    assert any("contrastive_steps=120" in note and "model.freeze=encoder" in note for note in seen)
    assert any("the encoder first learns from 1,920 pairs" in note for note in seen)
    began = txclf.load_config(f"{run.run_folder}/run.yaml")
    assert (began.train.contrastive_steps, began.model.freeze) == (120, "encoder")
    for number, words in enumerate(["train.contrastive_steps=0", "model.freeze=none", "model.pooling=cls"]):
        other = make_run(tmp_path, few, encoder, f"name=other{number}", words, "train.epochs=1")
        txclf.train(other)
        began = txclf.load_config(f"{other.run_folder}/run.yaml")
        assert (began.train.contrastive_steps, began.model.freeze) == (0, "none")


def test_run_stopped_while_the_encoder_learns_resumes_to_the_same_weights(
    tmp_path: Path, few: str, encoder: str
) -> None:
    run = short(tmp_path / "a", few, encoder)
    read: list[int] = []

    def stop_half_way(progress: Progress) -> bool:
        if progress.stage == "preparing":
            read.append(progress.step)
        return progress.stage == "preparing" and progress.step == 4 * 2 * PAIRS

    with pytest.raises(Interrupted):
        train(run, txclf.prepare(run), stop_half_way)
    assert read == [0, 32, 64, 96, 128]
    assert check_folder(run, resume=True) is None
    train(run, txclf.prepare(run), go_on)
    whole = short(tmp_path / "b", few, encoder)
    txclf.train(whole)
    one, two = (load_file(f"{each.run_folder}/model/model.safetensors") for each in (run, whole))
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value)


def test_runs_on_the_same_rows_share_the_encoder_and_other_settings_do_not(
    tmp_path: Path, few: str, encoder: str
) -> None:
    first = txclf.train(short(tmp_path, few, encoder, "name=one"))
    (stored,) = taught(first.prepared)
    written = stored.stat().st_mtime_ns
    txclf.train(short(tmp_path, few, encoder, "name=two", "train.epochs=1", "train.learning_rate=1e-4"))
    assert [path.stat().st_mtime_ns for path in taught(first.prepared)] == [written]
    for number, words in enumerate(["train.contrastive_steps=9", "seed=2", "model.dropout=0"]):
        run = short(tmp_path, few, encoder, f"name=more{number}", "train.epochs=1")
        txclf.train(txclf.load_config(run.model_dump(exclude_unset=True), [words]))
        assert len({path for folder in tmp_path.glob("runs/prepared/*") for path in taught(str(folder))}) == 2 + number


def test_an_encoder_of_which_a_part_is_frozen_learns_other_weights(tmp_path: Path, few: str, encoder: str) -> None:
    """One that is frozen as a whole afterwards learns as if it was not."""
    stored = {}
    for freeze in ("encoder", "none", "embeddings", "1"):
        words = [f"name=frozen-{freeze}", "train.epochs=1", f"model.freeze={freeze}"]
        summary = txclf.train(short(tmp_path, few, encoder, *words))
        stored[freeze] = len(taught(summary.prepared))
    assert stored == {"encoder": 1, "none": 1, "embeddings": 2, "1": 3}
    embeddings = [load_file(path)["embeddings.word_embeddings.weight"] for path in taught(summary.prepared)]
    own = AutoModel.from_pretrained(encoder).embeddings.word_embeddings.weight.detach().numpy()
    assert sorted(bool((each == own).all()) for each in embeddings) == [False, True, True]


def test_run_with_a_stored_encoder_resumes_with_it(tmp_path: Path, few: str, encoder: str) -> None:
    first = txclf.train(short(tmp_path, few, encoder, "name=one", "train.epochs=100"))
    run = short(tmp_path, few, encoder, "name=two", "train.epochs=100")

    def stop_in_training(progress: Progress) -> bool:
        return progress.stage == "training" and progress.step >= 2

    with pytest.raises(Interrupted):
        train(run, first.prepared, stop_in_training)
    recorded = json.loads(Path(run.run_folder, "prepared.json").read_text())
    assert "contrastive" not in recorded["encoder"]
    assert [sidecar["column"] for sidecar in recorded["sidecars"]] == ["encoded"]
    shutil.rmtree(f"{run.run_folder}/checkpoints")  # as if it was killed before the first
    train(run, first.prepared, go_on)
    assert len(taught(first.prepared)) == 1
    weights = load_file(f"{tmp_path}/runs/one/model/model.safetensors")
    for name, value in load_file(f"{run.run_folder}/model/model.safetensors").items():
        np.testing.assert_array_equal(value, weights[name])


def test_run_of_which_only_the_stored_model_is_gone_does_not_change_its_method(
    tmp_path: Path, few: str, encoder: str
) -> None:
    run = make_run(tmp_path, few, encoder, "model.freeze=none", "train.epochs=40")
    prepared = txclf.prepare(run)
    with pytest.raises(Interrupted):
        train(run, prepared, lambda progress: progress.step >= 1)
    shutil.rmtree(tmp_path / "runs" / "pretrained")
    again = make_run(tmp_path, few, encoder, "train.epochs=40")
    train(again, prepared, go_on)
    assert not taught(prepared)


def test_weights_in_several_files_become_one(tmp_path: Path, few: str, encoder: str) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(encoder, parts, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModel.from_pretrained(encoder).save_pretrained(parts, max_shard_size="40KB")
    assert len(list(parts.glob("*.safetensors"))) > 1
    one, two = (
        txclf.train(short(tmp_path, few, str(folder), f"name={name}"))
        for name, folder in [("a", encoder), ("b", parts)]
    )
    assert one.best == two.best
    assert {file.name for path in taught(one.prepared) for file in path.parent.glob("model*")} == {"model.safetensors"}


def test_fine_tuned_model_keeps_its_head(tmp_path: Path, few: str, encoder: str) -> None:
    first = make_run(tmp_path, few, encoder, "train.epochs=1", "model.freeze=none")
    txclf.train(first)
    run = make_run(tmp_path, few, f"{first.run_folder}/model", "name=again", "train.epochs=1")
    summary = txclf.train(run)
    assert not taught(summary.prepared)
    pairs_too = short(tmp_path, few, f"{first.run_folder}/model", "name=pairs")
    (weights,) = taught(txclf.train(pairs_too).prepared)
    content = json.loads((weights.parent / "config.json").read_text())
    assert content["num_hidden_layers"] == json.loads(Path(encoder, "config.json").read_text())["num_hidden_layers"]
    assert "txclf_pooling" not in content


@pytest.mark.faults
def test_a_worker_of_ray_teaches_the_same_encoder_also_after_a_stop(
    tmp_path: Path, few: str, encoder: str, local_ray: None
) -> None:
    here = txclf.train(short(tmp_path / "a", few, encoder, "model.dropout=0"))
    run = short(tmp_path / "b", few, encoder, "model.dropout=0", "compute.workers=1")
    with pytest.raises(Interrupted):
        train(run, txclf.prepare(run), lambda progress: progress.stage == "preparing" and progress.step > 0)
    assert not list(Path(txclf.prepare(run)).glob("contrastive-*/source.json"))
    there = txclf.train(run, resume=True)
    (one,), (two,) = taught(here.prepared), taught(there.prepared)
    weights = load_file(one)
    for name, value in load_file(two).items():
        np.testing.assert_allclose(weights[name], value, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["model.pooling=cls"], "pool by the mean of the tokens"),
        (["model.reinitialize_layers=1"], "`model.reinitialize_layers` exclude each other"),
        (["data.truncation=windows"], "`data.truncation: windows` exclude each other"),
        (["task=multilabel"], r"`train.contrastive_steps: 8` is not supported with `task: multilabel`"),
        (["model.pretrained="], "needs a pretrained model"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    tmp_path: Path, few: str, encoder: str, words: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        txclf.train(short(tmp_path, few, encoder, *words))


def test_damaged_weights_are_refused(tmp_path: Path, few: str) -> None:
    folder = as_sentence_encoder(write_encoder(tmp_path / "encoder"))
    weights = load_file(f"{folder}/model.safetensors")
    kept = {name: value for name, value in weights.items() if "layer.2." not in name}
    save_file(kept, f"{folder}/model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="lacks weights, of its layers"):
        txclf.train(short(tmp_path, few, folder))
    Path(folder, "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        txclf.train(short(tmp_path, few, folder, "name=damaged"))


def test_ready_without_steps_returns_the_configuration() -> None:
    from txclf.config import run_config
    from txclf.training.job import WorkerConfig

    config = WorkerConfig(run_config.parse({}), "nowhere")
    assert contrastive.ready(config, lambda progress: False, []) is config
