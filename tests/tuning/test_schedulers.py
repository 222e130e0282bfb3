"""Schedulers decide after a resume as they would have without it."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from txclf.artifacts import trials
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import lease
from txclf.core.errors import StorageError
from txclf.tuning import schedulers
from txclf.tuning.schedulers import Histories

EPOCHS = 12


def search(folder: Any = "runs", **tune: Any) -> RunConfig:
    settings = {"space": {"train.learning_rate": {"loguniform": [1e-4, 1e-1]}}, **tune}
    return run_config.parse({"storage": str(folder), "train": {"epochs": EPOCHS}, "tune": settings})


class RayTrial:
    """What the schedulers look at of Ray's trials."""

    def __init__(self, number: int, session: str) -> None:
        self.trial_id, self.status = f"{session}-{number}", "RUNNING"
        self.config = {"trial": {"number": number, "settings": {}}}


CONTROLLER = SimpleNamespace(get_live_trials=list)


def decisions(run: RunConfig, order: list[int], broken_after: int | None) -> list[tuple[int, float, str]]:
    """Return the scheduler's decision after each validation; after `broken_after` it is rebuilt from the log."""
    curves = np.random.default_rng(3).uniform(0, 1, (len(set(order)), EPOCHS)).cumsum(axis=1)
    histories: Histories = {}
    made = schedulers.scheduler(run, EPOCHS, {})
    known: dict[int, RayTrial] = {}
    stopped, said = set[int](), list[tuple[int, float, str]]()
    for count, number in enumerate(order):
        if count == broken_after:
            made = schedulers.scheduler(run, EPOCHS, {key: list(history) for key, history in histories.items()})
            known = {}
        history = histories.get(number, [])
        if number in stopped or len(history) == EPOCHS:
            continue
        if number not in known:
            known[number] = RayTrial(number, f"session{broken_after and count >= broken_after}")
            made.on_trial_add(CONTROLLER, known[number])  # type: ignore[arg-type]
        entry = {"epoch": len(history) + 1.0, "valid_calibrated_loss": -float(curves[number, len(history)])}
        histories[number] = [*history, entry]
        action = made.on_trial_result(CONTROLLER, known[number], entry)  # type: ignore[arg-type]
        said.append((number, entry["epoch"], str(action)))
        if action == "STOP":
            stopped.add(number)
    return said


@pytest.mark.parametrize("kind", ["asha", "median"])
@pytest.mark.parametrize("brackets", [1, 2])
def test_scheduler_rebuilt_from_the_log_takes_the_same_decisions(kind: str, brackets: int) -> None:
    run = search(scheduler={"kind": kind, "brackets": brackets})
    order = list(range(20)) * EPOCHS
    random.Random(5).shuffle(order)
    whole = decisions(run, order, None)
    actions = [action for _, _, action in whole]
    assert actions.count("STOP") > 3
    for broken_after in (1, 30, 77, 150):
        assert decisions(run, order, broken_after) == whole


def test_asha_keeps_one_in_three_at_each_rung() -> None:
    run = search()
    said = decisions(run, [number for number in range(60) for _ in range(EPOCHS)], None)
    reached = {epoch: len({number for number, at, _ in said if at >= epoch}) for epoch in (1.0, 2.0, 4.0, 10.0)}
    assert reached[1.0] == 60
    assert 14 <= reached[2.0] <= 30
    assert reached[10.0] <= 14
    assert {epoch for _, epoch, action in said if action == "STOP"} <= {1.0, 3.0, 9.0}


def test_median_rule_pauses_no_trial() -> None:
    run = search(scheduler={"kind": "median", "grace_period": 1})
    said = decisions(run, [0, 1, 0, 1, 0, 1], None)
    assert {action for _, _, action in said} == {"CONTINUE"}


def test_optuna_resumes_with_its_earlier_trials(tmp_path: Any) -> None:
    run = search(tmp_path, search="optuna", points_to_evaluate=[{"train.learning_rate": 0.02}], trials=30)

    def best_of(settings: dict[str, Any]) -> float:
        return abs(float(np.log10(settings["train.learning_rate"])) + 2.0)

    def go(made: schedulers.Optuna, count: int) -> list[dict[str, Any]]:
        found = []
        for _ in range(count):
            given: Any = made.suggest(f"ray-{made.next}")
            if given == made.FINISHED:
                break
            found.append(given["trial"])
            name = f"ray-{given['trial']['number']}"
            made.asked[name] = made.asked.pop(next(iter(made.asked)))
            result = {"valid_calibrated_loss": best_of(found[-1]["settings"])}
            if len(found) % 2:
                made.on_trial_result(name, result)
                made.on_trial_complete(name)
            else:  # stopped at its first validation
                made.on_trial_complete(name, result)
        return found

    begun = schedulers.Optuna(run, [], [], 30)
    with lease.held(run.run_folder):
        first = go(begun, 15)
    with pytest.raises(StorageError, match="took its work over"):
        begun.suggest("of another process")
    told = [one for one in begun.study.trials if one.state.name == "COMPLETE"]
    assert [one.params for one in told] == [one["settings"] for one in first]
    assert first[0]["settings"] == {"train.learning_rate": 0.02}
    known = [trials.Trial(number=one["number"], settings=one["settings"], state="finished") for one in first]
    results = [trials.Result(one, 1.0, best_of(one.settings), 1, 1.0) for one in known]
    waiting = trials.Trial(number=15, settings={"train.learning_rate": 0.05})
    made = schedulers.Optuna(run, [*results, trials.Result(waiting, 0.0, float("nan"), 0, 0.0)], [waiting], 30)
    with lease.held(run.run_folder):
        second = go(made, 100)
    assert [one["number"] for one in first + second] == list(range(30))
    assert second[0]["settings"] == waiting.settings
    late = [best_of(one["settings"]) for one in second[-8:]]
    assert np.median(late) < 0.5  # a random draw is 0.75 away in the median
