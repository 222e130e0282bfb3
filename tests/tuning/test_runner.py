"""The runner chooses resources, trials and histories from the run file and the trials' folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from txclf.artifacts import trials
from txclf.artifacts.trials import Trial
from txclf.config import recipes, run_config
from txclf.config.run_config import RunConfig
from txclf.tuning import runner


def search(folder: Path, space: dict[str, Any], **compute: Any) -> RunConfig:
    return run_config.parse({"storage": str(folder), "tune": {"space": space}, "compute": compute})


@pytest.mark.parametrize(("workers", "expected"), [(1, {"CPU": 2.0}), (2, {"memory": 1.0})])
def test_resources_of_several_workers_leave_the_cpus_to_them(
    tmp_path: Path, workers: int, expected: dict[str, float]
) -> None:
    run = search(tmp_path, {"seed": {"choice": [1, 2]}}, workers=workers, cpus_per_worker=2)
    assert runner._resources(run).bundles == [expected]


def test_max_epochs_of_searched_epochs_is_the_largest(tmp_path: Path) -> None:
    assert runner._max_epochs(search(tmp_path, {"train.epochs": {"choice": [3, 9, 5]}})) == 9


def test_trial_source_of_pending_trials_tries_each_once(tmp_path: Path) -> None:
    run = search(tmp_path, {"seed": {"choice": [1, 2]}})
    pending = [Trial(number=number, settings={"seed": number}) for number in (4, 2)]
    results = [trials.result(run.run_folder, trial, trials.metric(run)) for trial in pending]
    space, settings = runner._trial_source(run, runner.SearchPlan(3, {}), results, pending)
    assert [config["number"] for config in space["trial"]["grid_search"]] == [4, 2]
    assert settings == {"max_concurrent_trials": 3}
    assert runner._histories(run, results, pending) == {}


def test_histories_leave_out_trials_whose_validations_nobody_has_judged(tmp_path: Path) -> None:
    run = search(tmp_path, {"seed": {"choice": [1, 2]}})
    both = [Trial(number=number, settings={"seed": number}, judged=7 * number) for number in range(2)]
    for trial in both:
        log = Path(trials.folder(run.run_folder, trial.number), "metrics.jsonl")
        log.parent.mkdir(parents=True)
        log.write_text('{"step": 7, "epoch": 1.0, "valid_loss": 0.5, "valid_calibrated_loss": 0.5}\n')
    results = [trials.result(run.run_folder, trial, trials.metric(run)) for trial in both]
    assert [*runner._histories(run, results, both)] == [1]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, recipes.MAX_EPOCHS),
        ({"train": {"epochs": 7}}, 7),
        ({"task": "multilabel", "train": {"epochs": 100}}, 100),
        ({"task": "seq2seq"}, 3),
    ],
    ids=str,
)
def test_max_epochs_are_those_of_the_run_unless_the_rows_settle_them(settings: dict[str, Any], expected: int) -> None:
    space = {"train.learning_rate": {"choice": [0.1, 0.2]}}
    assert runner._max_epochs(run_config.parse({**settings, "tune": {"space": space}})) == expected
