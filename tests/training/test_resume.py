"""Settings that a resumed run may change, and more epochs for a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import TINY
from txclf import api
from txclf.config import run_config
from txclf.core.errors import ConfigError
from txclf.training import resume


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_csv(tmp_path_factory.mktemp("data") / "train.csv", make_rows(120))


def words(folder: Path, data: str, *more: str) -> list[str]:
    return [f"storage={folder}", "name=mine", f"data.train={data}", *TINY, *more]


def test_resume_with_more_epochs_trains_a_finished_run_on(tmp_path: Path, data: str) -> None:
    short = api.train({}, words(tmp_path, data, "train.epochs=1"))
    (tmp_path / "mine/metrics.json").write_text("{}")
    longer = api.train({}, words(tmp_path, data, "train.epochs=3"), resume=True)
    assert (short.epochs, longer.epochs, longer.steps) == (1, 3, 3 * short.steps)
    assert run_config.load(tmp_path / "mine/run.yaml").train.epochs == 3
    assert not (tmp_path / "mine/metrics.json").exists()
    lines = [json.loads(line) for line in (tmp_path / "mine/metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train_loss" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == longer.steps
    # The schedule is that of a run of three epochs from the checkpoint on.
    whole = api.train({}, [*words(tmp_path, data, "train.epochs=3"), "name=whole"])
    other = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in other if "learning_rate" in line}
    assert whole.steps == longer.steps
    assert {
        line["step"]: line["learning_rate"]
        for line in lines
        if line.get("step", 0) > short.steps and "train_loss" in line
    }.items() <= rates.items()
    assert api.train({}, words(tmp_path, data, "train.epochs=3"), resume=True) == longer
    with pytest.raises(ConfigError, match=r"`train\.epochs` \(3, now 2\)\. `train\.epochs` may only grow"):
        api.train({}, words(tmp_path, data, "train.epochs=2"), resume=True)


def test_resume_with_other_settings_names_each_key_and_value(tmp_path: Path, data: str) -> None:
    saved = run_config.load(None, words(tmp_path, data, "train.epochs=1"))
    run = run_config.load(None, words(tmp_path, data, "train.epochs=2", "train.learning_rate=0.5"))
    with pytest.raises(ConfigError) as info:
        resume.require_kept(run, saved, "run.yaml")
    assert "`train.epochs` (1, now 2), `train.learning_rate` (" in str(info.value)
    resume.require_kept(run_config.load(None, words(tmp_path, data, "train.epochs=1", "train.on_nan=skip")), saved, "")


def test_as_resumed_more_epochs_keep_the_recipe_of_the_run() -> None:
    from txclf.config import recipes

    run = run_config.load(None, [])
    saved = recipes.with_recipe(run, 500, 2)
    assert saved.train.betas == (0.9, 0.98)
    longer = resume.as_resumed(run_config.load(None, ["train.epochs=99"]), saved)
    assert longer.train.epochs == 99
    assert longer.train.betas == saved.train.betas
    assert longer.model == saved.model
    assert resume.as_resumed(run, saved).train == saved.train


def test_require_extendable_after_early_stopping_raises() -> None:
    resume.require_extendable({"stopped_early": False, "epochs": 3.0})
    with pytest.raises(ConfigError, match=r"stopped early after 3\.00 epochs"):
        resume.require_extendable({"stopped_early": True, "epochs": 3.0})
