"""Runs that fine-tune a tiny pretrained model, from the run file to the bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import txclf
from tests.helpers.encoders import ARCHITECTURES, make_run, write_encoder
from txclf.config import run_config
from txclf.core import storage
from txclf.training.progress import Interrupted


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bundle_gives_the_answers_of_transformers(tmp_path: Path, data: str, architecture: str) -> None:
    from transformers import pipeline

    run = make_run(tmp_path, data, write_encoder(tmp_path / "encoder", architecture))
    summary = txclf.train(run)
    assert summary.calibration is not None
    bundle = f"{run.run_folder}/model"
    texts = ["a good thing", "bad", "what a good, good day it was"]
    make: object = pipeline
    expected = make("text-classification", model=bundle, top_k=None)(texts, truncation=True)  # type: ignore[operator]
    for prediction, scores in zip(txclf.Classifier.load(bundle)(texts), expected, strict=True):
        assert prediction.probabilities == pytest.approx({one["label"]: one["score"] for one in scores}, abs=1e-5)


def test_run_file_records_what_was_settled(tmp_path: Path, data: str) -> None:
    run = make_run(tmp_path, data, write_encoder(tmp_path / "encoder"), "train.epochs=1")
    notes: list[str] = []
    txclf.train(run, on_progress=lambda progress: notes.extend(progress.notes))
    assert "pretrained weights: new `classifier.bias`, `classifier.weight`; not used none" in notes
    assert any(note.startswith("training data: ") for note in notes)
    saved = run_config.load(f"{run.run_folder}/run.yaml")
    assert (saved.model.hidden_size, saved.model.num_layers) == (32, 3)
    assert (saved.train.epochs, saved.train.schedule, saved.train.batch_size) == (1, "linear", 16)
    assert "dropout" not in saved.model.model_fields_set
    assert run_config.dump(saved) == Path(f"{run.run_folder}/run.yaml").read_text()


def test_a_run_resumes_without_the_original_model(tmp_path: Path, data: str) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    whole = make_run(tmp_path, data, encoder, "name=whole", "train.epochs=12")
    txclf.train(whole)
    run = make_run(tmp_path, data, encoder, "train.epochs=12")
    with pytest.raises(Interrupted):
        txclf.train(run, on_progress=lambda progress: progress.step >= 20)
    shutil.rmtree(encoder)
    txclf.train(run, resume=True)
    weights = [storage.sha256(f"{one.run_folder}/model/model.safetensors") for one in (whole, run)]
    assert weights[0] == weights[1]


def test_frozen_weights_do_not_change(tmp_path: Path, data: str) -> None:
    from safetensors.torch import load_file

    encoder = write_encoder(tmp_path / "encoder")
    run = make_run(tmp_path, data, encoder, "model.freeze=2")
    txclf.train(run)
    before, after = load_file(f"{encoder}/model.safetensors"), load_file(f"{run.run_folder}/model/model.safetensors")
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[f"bert.{name}"])}
    assert {name.split(".")[2] for name in changed if name.startswith("encoder")} == {"2"}
    assert not any(name.startswith("embeddings") for name in changed)
