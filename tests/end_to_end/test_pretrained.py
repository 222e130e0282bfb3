"""Fine-tuning on Ray: the steps of one process on any number of workers, killed, sharded and searched."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.helpers.encoders import write_encoder
from tests.helpers.ray_processes import workers_of_ray
from tests.helpers.runs import go_on, lines, losses, prepare_here
from txclf import Classifier
from txclf.config import recipes, run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.training.progress import Interrupted, Progress
from txclf.training.train import RunSummary, check_folder, train
from txclf.tuning import tune
from txclf.tuning.callbacks import SearchState

pytestmark = [
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
TWO = ("compute.workers=2", "compute.cpus_per_worker=0.5")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a tiny pretrained model."""
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def make(folder: Path, data: str, encoder: str, *words: str) -> RunConfig:
    """Return a run without dropout, with a rate for each layer."""
    settings = {
        "name": "tuned",
        "storage": os.fspath(folder / "runs"),
        "data": {"train": data},
        "tokenizer": {"max_length": 16},
        "model": {"pretrained": encoder, "dropout": 0, "attention_dropout": 0, "gradient_checkpointing": True},
        "train": {"epochs": 1, "precision": "fp32", "log_every_steps": 1, "layer_decay": 0.8},
    }
    return run_config.parse(run_config.override(settings, words))


def trained(folder: Path, data: str, encoder: str, *words: str) -> tuple[RunConfig, RunSummary]:
    """Train a run in a folder."""
    run = make(folder, data, encoder, *words)
    check_folder(run, resume=False)
    return run, train(run, prepare_here(run), go_on)


def weights(run: RunConfig) -> str:
    """Return the hash of the weights of a run's bundle."""
    return storage.sha256(f"{run.run_folder}/model/model.safetensors")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, data: str, encoder: str) -> RunConfig:
    """Return the run of this process."""
    return trained(tmp_path_factory.mktemp("here"), data, encoder)[0]


def test_two_workers_take_the_same_steps(tmp_path: Path, data: str, encoder: str, here: RunConfig) -> None:
    notes = set[str]()
    run = make(tmp_path, data, encoder, *TWO)

    def show(progress: Progress) -> bool:
        notes.update(progress.notes)
        return False

    summary = train(run, prepare_here(run), show)
    assert summary.workers == 2
    np.testing.assert_allclose(losses(run), losses(here), rtol=2e-3)
    assert any(note.startswith("pretrained weights: new `classifier.bias`") for note in notes)
    texts = [("a good film",), ("the bad plot of an actor",)]
    found = [Classifier.load(f"{one.run_folder}/model").probabilities(texts) for one in (here, run)]
    np.testing.assert_allclose(found[0], found[1], atol=2e-3)


@pytest.mark.faults
def test_one_worker_gives_the_weights_of_this_process(tmp_path: Path, data: str, encoder: str, here: RunConfig) -> None:
    run, _ = trained(tmp_path, data, encoder, "compute.workers=1")
    assert losses(run) == losses(here)
    assert weights(run) == weights(here)


@pytest.mark.faults
def test_frozen_layers_on_two_workers_take_the_same_steps(tmp_path: Path, data: str, encoder: str) -> None:
    frozen = ("model.freeze=1",)
    here, _ = trained(tmp_path, data, encoder, *frozen, "name=here")
    run, _ = trained(tmp_path, data, encoder, *frozen, *TWO)
    np.testing.assert_allclose(losses(run), losses(here), rtol=2e-3)


@pytest.mark.faults
def test_fsdp_takes_the_same_steps_after_a_stop(tmp_path: Path, data: str, encoder: str, here: RunConfig) -> None:
    run = make(tmp_path, data, encoder, *TWO, "compute.strategy=fsdp")
    prepared = prepare_here(run)
    with pytest.raises(Interrupted):
        train(run, prepared, lambda progress: progress.step >= 2)
    assert train(run, prepared, go_on).attempts == 2
    np.testing.assert_allclose(losses(run), losses(here), rtol=2e-3)


@pytest.mark.faults
def test_killed_worker_restarts_from_the_checkpoint(tmp_path: Path, data: str, encoder: str) -> None:
    words = (*TWO, "train.epochs=4", "train.checkpoint_every=10", "train.early_stopping_patience=0")
    unbroken, _ = trained(tmp_path, data, encoder, *words, "name=unbroken")
    run = make(tmp_path, data, encoder, *words)
    killed = list[int]()

    def kill(progress: Progress) -> bool:
        if not killed and progress.step >= 23:
            killed.append(workers_of_ray()[0])
            os.kill(killed[0], signal.SIGKILL)
        return False

    summary = train(run, prepare_here(run), kill)
    assert summary.attempts == 2
    assert lines(run) == lines(unbroken)
    assert weights(run) == weights(unbroken)


@pytest.mark.faults
def test_search_follows_the_recipe_and_resumes(tmp_path: Path, data: str, encoder: str) -> None:
    path = tmp_path / "search.yaml"
    space = {"train.learning_rate": {"grid": [1e-5, 1e-3]}}
    settings = {"search": "grid", "space": space, "max_concurrent": 1, "scheduler": {"kind": "fifo"}}
    path.write_text(yaml.safe_dump({"name": "search", "tune": settings}))
    words = [f"data.train={data}", f"storage={tmp_path}/runs", f"model.pretrained={encoder}", "train.epochs=2"]
    words += ["tokenizer.max_length=16", "train.precision=fp32"]

    def one_is_finished(state: SearchState) -> bool:
        return any(one.trial.state == "finished" for one in state.results.values())

    with pytest.raises(Interrupted), tune.opened(run_config.load(str(path), words)) as run:
        tune.tune(run, tune.plan(run), one_is_finished)
    with tune.opened(run_config.load(str(path), words), resume=True) as run:
        search = tune.tune(run, tune.plan(run), lambda state: False)
    assert (search.trials, search.finished, search.settings) == (2, 2, {"train.learning_rate": 1e-3})
    best = run_config.load(f"{run.run_folder}/best.yaml")
    small = recipes.pretrained(270)["train"]
    assert {key: getattr(best.train, key) for key in small} == small | {"learning_rate": 1e-3, "epochs": 2}
    assert best.model.hidden_size == 32
    assert Classifier.load(f"{run.run_folder}/model")(["a good film"])[0].label in ("neg", "pos")
