"""The shipped run files that fine-tune MiniLM, or distill it, train: here on a tiny encoder instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import txclf
from tests.helpers.encoders import write_encoder

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("minilm_*.yaml"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_encoder(tmp_path_factory.mktemp("encoder"), max_position_embeddings=256)


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_job_trains_on_an_encoder_in_a_folder(
    job: Path, tmp_path: Path, encoder: str, data: str, tag_data: tuple[str, str]
) -> None:
    rows = [f"data.train={data}"] if "goemotions" not in job.name else [f"data.train={tag_data[0]}", "data.label=tags"]
    overrides = [*rows, "data.valid=null", "data.test=null", f"model.pretrained={encoder}", f"storage={tmp_path}"]
    summary = txclf.train(job, [*overrides, "train.epochs=1"])
    assert summary.steps > 0
    classifier = txclf.Classifier.load(os.fspath(tmp_path / job.stem / "model"))
    assert classifier(["a good day"])[0].label in classifier.metadata.labels


@pytest.mark.parametrize("name", ["agnews", "trec"])
def test_distill_job_learns_from_the_bundle_of_its_teacher(tmp_path: Path, encoder: str, data: str, name: str) -> None:
    overrides = [f"data.train={data}", "data.test=null", f"storage={tmp_path}", "train.epochs=1"]
    jobs, teacher = JOBS[0].parent, f"{tmp_path}/minilm_{name}/model"
    txclf.train(jobs / f"minilm_{name}.yaml", [*overrides, f"model.pretrained={encoder}"])
    overrides += [f"model.word_vectors={teacher}", "model.hidden_size=32"]  # both start from its vectors
    if name == "trec":
        overrides += [f"tokenizer.file={teacher}/tokenizer.json", "data.altered_copies=2"]
    summary = txclf.distill(teacher, jobs / f"distill_{name}.yaml", overrides=overrides)
    assert summary.steps > 0
    assert txclf.Classifier.load(f"{tmp_path}/distill_{name}/model").metadata.labels == ["neg", "pos"]
