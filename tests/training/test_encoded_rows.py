"""The head of a frozen encoder trains on stored vectors, with the steps of a run that has none."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

import txclf
from tests.helpers.encoders import make_run, write_encoder
from tests.helpers.files import write_csv
from txclf.config.run_config import RunConfig
from txclf.data import shards
from txclf.metrics.multiclass import short_scores
from txclf.training import encoded_rows, pretrained_network, row_sidecars
from txclf.training.data_module import ShardsDataModule
from txclf.training.job import WorkerConfig
from txclf.training.module import ClassifierModule

FROZEN = ["model.freeze=encoder", "train.epochs=1", "train.calibrate=false"]


def settled(run: RunConfig) -> WorkerConfig:
    prepared = txclf.prepare(run)
    run, encoder = pretrained_network.settled(run, shards.load_manifest(prepared))[:2]
    return WorkerConfig(run, prepared, encoder=encoder)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("architecture", "pooling"), [("bert", "cls"), ("bert", "mean"), ("modernbert", "cls"), ("gpt2", "cls")]
)
def test_training_on_stored_vectors_gives_the_weights_of_training_on_tokens(
    tmp_path: Path, data: str, architecture: str, pooling: str
) -> None:
    encoder = write_encoder(tmp_path / "encoder", architecture)
    run = make_run(tmp_path, data, encoder, *FROZEN, "model.dropout=0", f"model.pooling={pooling}")
    ready = row_sidecars.ready(settled(run))
    assert [sidecar.splits for sidecar in ready.sidecars] == [("train", "valid")]
    found = []
    for sidecars in (ready.sidecars, ()):
        data_module = ShardsDataModule(ready.run, ready.prepared, encoder=ready.encoder, sidecars=sidecars)
        torch.manual_seed(1)
        module = ClassifierModule.from_data(data_module)
        trainer = pl.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
        )
        trainer.fit(module, datamodule=data_module)
        found.append((module.valid_metrics["valid_loss"], module.model.state_dict()))
    (one_loss, one), (two_loss, two) = found
    assert one_loss == pytest.approx(two_loss, rel=1e-4)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3)


def test_sidecar_is_found_without_a_gpu_of_the_driver(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settled(make_run(tmp_path, data, write_encoder(tmp_path / "encoder"), *FROZEN))
    found = encoded_rows.sidecar(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    seen: set[str] = set()
    moved = torch.nn.Module.to

    def to(module: torch.nn.Module, device: str) -> torch.nn.Module:
        seen.add(device)
        return moved(module, "cpu")

    monkeypatch.setattr(torch.nn.Module, "to", to)
    assert encoded_rows.sidecar(config) == found is not None
    assert "cuda" not in seen


def test_vectors_of_each_pooling_are_stored_apart(tmp_path: Path, data: str) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    names = set()
    for pooling in ("cls", "mean"):
        config = settled(make_run(tmp_path, data, encoder, *FROZEN, f"model.pooling={pooling}"))
        sidecar = encoded_rows.sidecar(config)
        assert sidecar is not None
        names.add((config.prepared, sidecar.name))
    assert len({prepared for prepared, _ in names}) == 1
    assert len(names) == 2


def test_bundle_of_a_head_trained_on_vectors_answers_texts(tmp_path: Path, data: str) -> None:
    run = make_run(tmp_path, data, write_encoder(tmp_path / "encoder"), *FROZEN, "train.epochs=4")
    summary = txclf.train(run)
    assert list(Path(summary.prepared).glob("encoded-*/valid/*.parquet"))
    assert summary.mfu is None
    manifest = shards.load_manifest(summary.prepared)
    rows = shards.read_split(summary.prepared, manifest, "valid", ["text", "label"])
    classifier = txclf.Classifier.load(f"{run.run_folder}/model")
    chances = classifier.probabilities([(text,) for text in rows["text"].to_pylist()])
    labels = rows["label"].to_numpy()
    loss = -np.log(chances[np.arange(len(labels)), labels]).mean()
    assert loss == pytest.approx(summary.best["valid_loss"], rel=1e-3)
    assert short_scores(chances.argmax(1), labels, 2)["f1_macro"] == pytest.approx(summary.best["valid_f1_macro"])


@pytest.mark.parametrize(
    "words",
    [
        ["model.freeze=2"],
        ["train.token_dropout=0.1"],
        ["data.truncation=windows"],
        ["compute.strategy=fsdp"],
    ],
)
def test_sidecar_of_a_run_whose_rows_change_is_none(tmp_path: Path, data: str, words: list[str]) -> None:
    run = make_run(tmp_path, data, write_encoder(tmp_path / "encoder"), *FROZEN, *words)
    assert encoded_rows.sidecar(settled(run)) is None


def test_vectors_and_teacher_go_together(tmp_path: Path, data: str) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    first = make_run(tmp_path, data, encoder, *FROZEN, "name=first")
    txclf.train(first)
    second = make_run(tmp_path, data, encoder, *FROZEN, "name=second")
    summary = txclf.distill(f"{first.run_folder}/model", second)
    folders = {path.name.partition("-")[0] for path in Path(summary.prepared).iterdir() if path.is_dir()}
    assert {"encoded", "teacher"} <= folders


def test_pooling_is_found_with_the_longest_rows(tmp_path: Path) -> None:
    letters = [(letter, "pos" if number % 2 else "neg") for number, letter in enumerate(string.ascii_letters)]
    data = write_csv(tmp_path / "rows.csv", [*letters, ("the quick brown fox", "pos")])
    words = [*FROZEN, "train.batch_size=4", "data.valid_fraction=0.1"]
    config = settled(make_run(tmp_path, data, write_encoder(tmp_path / "encoder", "gpt2"), *words))
    assert encoded_rows._pooling(config, encoded_rows._network(config)) == "last"
