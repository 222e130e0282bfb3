"""The linear model on n-grams in a run: its share, the bundle, predictions, evaluation, other commands."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import txclf
from tests.helpers.encoders import write_encoder
from tests.helpers.files import write_csv
from tests.helpers.runs import tiny
from txclf.config.run_config import RunConfig
from txclf.core.errors import BundleError, ConfigError
from txclf.evaluation import evaluate
from txclf.inference import bundle
from txclf.ngrams import fitting
from txclf.training import ngram_share
from txclf.training.train import RunSummary

WORDS = {
    "a": ["sun", "rain", "wind", "cloud"],
    "b": ["goal", "team", "match", "score"],
    "c": ["bank", "share", "price", "fund"],
}


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Return rows with two words of their label among many others."""
    draw = random.Random(seed)
    noise = [f"word{number}" for number in range(200)]
    labels = draw.choices(list(WORDS), k=count)
    chosen = [[*draw.choices(noise, k=8), *draw.choices(WORDS[label], k=2)] for label in labels]
    return [(" ".join(draw.sample(words, k=10)), label) for words, label in zip(chosen, labels, strict=True)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunSummary]:
    """Return a run whose network learns little in two epochs."""
    folder = tmp_path_factory.mktemp("ngrams")
    data = write_csv(folder / "train.csv", rows(600, 0))
    test = write_csv(folder / "test.csv", rows(200, 1))
    run = tiny(folder, data, "model.ngrams=auto", f"data.test={test}", "train.learning_rate=3e-4")
    return run, txclf.train(run)


def test_train_blends_what_is_better_together(done: tuple[RunConfig, RunSummary]) -> None:
    run, summary = done
    share = summary.ngrams
    assert share
    assert share.loss < share.network_loss
    assert share.loss <= share.ngram_loss
    record = json.loads(Path(run.run_folder, "model", "model.json").read_text())
    assert record["ngrams"] == share.model_dump(mode="json")
    assert "ngrams.safetensors" in record["sha256"]


def test_evaluate_scores_the_blend_with_and_without_a_baseline(done: tuple[RunConfig, RunSummary]) -> None:
    run, _ = done
    found = evaluate.evaluate(run.run_folder)
    texts, labels = zip(*rows(200, 1), strict=True)
    predicted = txclf.Classifier.load(f"{run.run_folder}/model")(texts)
    assert found["accuracy"] == np.mean([one.label == label for one, label in zip(predicted, labels, strict=True)])
    assert found["accuracy"] >= found["baseline"]["accuracy"] - 0.01
    assert found["accuracy"] > 0.9
    without = evaluate.evaluate(run.run_folder, with_baseline=False)
    assert without["accuracy"] == found["accuracy"]


def test_evaluate_takes_the_linear_model_of_the_bundle_which_is_the_one_it_would_train(
    done: tuple[RunConfig, RunSummary], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = done
    ready = evaluate.evaluate(run.run_folder)["baseline"]
    monkeypatch.setattr(bundle, "load_blend", lambda folder: None)
    trained = evaluate.evaluate(run.run_folder)["baseline"]
    assert {**ready, "seconds": 0} == {**trained, "seconds": 0}


def test_network_only_answers_as_the_network(done: tuple[RunConfig, RunSummary]) -> None:
    run, summary = done
    classifier = txclf.Classifier.load(f"{run.run_folder}/model")
    network = classifier.network_only()
    texts = [text for text, _ in rows(20, 2)]
    both = classifier.probabilities([(text,) for text in texts])
    alone = network.probabilities([(text,) for text in texts])
    assert both.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert abs(both - alone).max() > 0.01
    assert summary.ngrams
    assert network.temperature == summary.ngrams.network_temperature
    assert classifier.probabilities([(text,) for text in texts[:1]])[0] == pytest.approx(both[0], abs=1e-5)


def test_ngram_contributions_name_the_words_of_the_label(done: tuple[RunConfig, RunSummary]) -> None:
    run, _ = done
    classifier = txclf.Classifier.load(f"{run.run_folder}/model")
    found = classifier.ngram_contributions("word1 goal word2")
    assert found["goal"]["b"] > max(found["goal"]["a"], found["goal"]["c"])
    assert classifier.network_only().ngram_contributions("goal") == {}


def test_report_teacher_and_prediction_answer_as_the_bundle(done: tuple[RunConfig, RunSummary], tmp_path: Path) -> None:
    run, _ = done
    out = tmp_path / "out.jsonl"
    txclf.predict(f"{run.run_folder}/model", [write_csv(tmp_path / "in.csv", rows(30, 3))], out=out)
    predicted = [json.loads(line)["label"] for line in out.read_text().splitlines()]
    texts = [text for text, _ in rows(30, 3)]
    assert predicted == [one.label for one in txclf.Classifier.load(f"{run.run_folder}/model")(texts)]
    small = run.model_copy(update={"name": "student", "storage": str(tmp_path)})
    assert txclf.distill(f"{run.run_folder}/model", small).best


def test_damaged_ngram_weights_are_refused(done: tuple[RunConfig, RunSummary], tmp_path: Path) -> None:
    run, _ = done
    folder = tmp_path / "model"
    folder.mkdir()
    for path in Path(run.run_folder, "model").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / "model.json").read_text())
    content["ngrams"]["temperature"] = -1.0
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"damaged at `ngrams\.temperature`"):
        txclf.Classifier.load(str(folder))
    (folder / "ngrams.safetensors").unlink()
    content["ngrams"]["temperature"] = 1.0
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"ngrams\.safetensors`: missing"):
        txclf.Classifier.load(str(folder))


def test_ngrams_follow_the_run_file(tmp_path: Path) -> None:
    def uses(*words: str) -> bool:
        return txclf.load_config(None, [f"storage={tmp_path}", *words]).uses_ngrams

    assert uses()
    assert uses("task=multilabel")
    assert not uses("model.ngrams=false")
    assert not uses("task=seq2seq", "data.text=source")
    assert not uses("model.pretrained=some/model")
    assert uses("model.pretrained=some/model", "model.ngrams=true")
    assert not uses("train.train_on_valid=true")
    with pytest.raises(ConfigError, match=r"`model\.ngrams: true` needs validation rows"):
        uses("train.train_on_valid=true", "model.ngrams=true")
    with pytest.raises(ConfigError, match=r"`model\.ngrams: true` is not supported with `task: seq2seq`"):
        uses("task=seq2seq", "model.ngrams=true", "data.text=source")


def test_fine_tuned_folder_holds_the_network_alone(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    data = write_csv(tmp_path / "train.csv", rows(300, 0))
    words = [f"storage={tmp_path}", f"data.train={data}", f"model.pretrained={write_encoder(tmp_path)}"]
    run = txclf.load_config(None, [*words, "model.ngrams=true", "train.epochs=1", "tokenizer.max_length=16"])
    assert txclf.train(run).ngrams
    folder = f"{run.run_folder}/model"
    classifier = txclf.Classifier.load(folder)
    texts = [text for text, _ in rows(10, 4)]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")
    found = AutoModelForSequenceClassification.from_pretrained(folder)(**tokens).logits.softmax(dim=1).detach().numpy()
    columns = [(text,) for text in texts]
    assert found == pytest.approx(classifier.network_only().probabilities(columns), abs=1e-5)
    assert abs(found - classifier.probabilities(columns)).max() > 0.01


def test_runs_on_the_same_data_train_one_linear_model(
    done: tuple[RunConfig, RunSummary], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, summary = done
    seen: list[int] = []

    def counted(*rows: Any, **settings: Any) -> fitting.Choice:
        seen.append(len(rows[0]))
        return choose(*rows, **settings)

    choose = fitting.choose
    monkeypatch.setattr(fitting, "choose", counted)
    ngram_share._chosen.cache_clear()
    for seed in (1, 2):
        logits = np.random.default_rng(seed).normal(size=(40, 3)).astype(np.float32)
        assert ngram_share.fitted(run, summary.prepared, logits, np.arange(40) % 3)
    assert len(seen) == 1
