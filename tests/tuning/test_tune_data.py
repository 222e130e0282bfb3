"""Searches and their data: prepared once, kept by a resume, refused if they have changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.encoders import write_encoder
from tests.helpers.files import write_csv
from tests.helpers.runs import tiny
from txclf.artifacts import trials
from txclf.artifacts.trials import Trial
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError, DataError
from txclf.training.train import check_folder, recorded_encoder, train
from txclf.tuning import tune


def search(folder: Path, data: str, *words: str) -> RunConfig:
    """Return a search of learning rates."""
    return tiny(folder, data, "tune.space={train.learning_rate: {choice: [0.001, 0.01]}}", "tune.trials=2", *words)


def test_prepare_all_keeps_the_data_of_trials_that_have_begun(tmp_path: Path, data: str) -> None:
    mine = tmp_path / "train.csv"
    shutil.copy(data, mine)
    run = search(tmp_path / "runs", str(mine), "train.epochs=1")
    (prepared,) = tune.prepare_all(run, print).values()
    settings = trials.draw(run, 0)
    trials.write(run.run_folder, Trial(number=0, settings=settings))
    train(trials.run_of(run, 0, settings), prepared.folder, is_trial=True)
    with mine.open("a") as file:
        file.write('"one more row",pos\n')
    assert [*tune.prepare_all(run, print).values()] == [prepared]
    shutil.rmtree(prepared.folder)
    with pytest.raises(ConfigError, match=r"began with `.*`, and the data changed"):
        tune.prepare_all(run, print)


def test_trials_need_neither_the_folder_nor_the_files_of_their_encoder(tmp_path: Path, data: str) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    words = [f"model={{pretrained: {encoder}}}", "tokenizer={max_length: 16}", "train={epochs: 1}"]
    run = search(tmp_path / "runs", data, *words)
    (prepared,) = tune.prepare_all(run, print).values()
    shutil.rmtree(encoder)
    settings = trials.draw(run, 0)
    trials.write(run.run_folder, Trial(number=0, settings=settings))
    one = trials.run_of(run, 0, settings)
    train(one, prepared.folder, is_trial=True, encoder=prepared.encoder)
    assert prepared.encoder == (recorded_encoder(one), None)
    assert [*tune.prepare_all(run, print).values()] == [prepared]  # as for a resumed search


def test_opened_search_that_cannot_be_prepared_can_be_started_again(tmp_path: Path, data: str) -> None:
    broken = search(tmp_path, f"{tmp_path}/none.csv")
    with pytest.raises(DataError), tune.opened(broken) as run:
        tune.prepare_all(run, print)
    with tune.opened(search(tmp_path, data)) as run:
        assert len(tune.prepare_all(run, print)) == 1


def test_rows_without_labels_need_a_trial_that_learns_from_them(tmp_path: Path, data: str) -> None:
    more = write_csv(tmp_path / "more.csv", [(f"more text {number}",) for number in range(20)], header=["text"])
    unlabelled = f"data.unlabelled={more}"
    with pytest.raises(ConfigError, match=r"`data\.unlabelled`: rows without labels need"):
        tune.prepare_all(search(tmp_path / "runs", data, unlabelled), print)
    space = "tune.space={train.pretrain_epochs: {choice: [0, 1]}}"
    run = search(tmp_path / "runs", data, unlabelled, space)
    assert len(tune.prepare_all(run, print)) == 1
    check_folder(trials.run_of(run, 0, {"train.pretrain_epochs": 0}), resume=False, is_refit=True)
    copies = "tune.space={data.altered_copies: {choice: [0, 2]}}"
    with pytest.raises(ConfigError, match=r"`data\.altered_copies`: rows without labels need a teacher"):
        tune.prepare_all(search(tmp_path / "runs", data, copies, "tune.search=grid"), print)
