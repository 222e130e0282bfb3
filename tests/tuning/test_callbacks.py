"""The callbacks record each event of a trial in its `trial.json` and in the state of the search."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle

from txclf.artifacts import trials
from txclf.artifacts.trials import Trial
from txclf.config import run_config
from txclf.core import lease
from txclf.core.errors import StorageError
from txclf.tuning.callbacks import SearchState, Stopper, TrialError, Watcher


def ray_trial(number: int, **attributes: Any) -> SimpleNamespace:
    """Return the attributes that the callbacks read from a trial of Ray."""
    return SimpleNamespace(config={"trial": {"number": number, "settings": {}}}, last_result={}, **attributes)


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[Watcher]:
    """Yield a watcher of a search of this process with one waiting trial."""
    space = {"train.learning_rate": {"choice": [0.1, 0.2]}}
    run = run_config.parse({"storage": str(tmp_path), "tune": {"space": space}})
    trial = Trial(number=0, settings={"train.learning_rate": 0.1})
    trials.write(run.run_folder, trial)
    result = trials.result(run.run_folder, trial, trials.metric(run))
    with lease.held(run.run_folder):
        yield Watcher(run.run_folder, SearchState(run, [result]))


def test_watcher_on_start_and_result_records_state_and_judged_step(watcher: Watcher) -> None:
    watcher.on_trial_start(0, [], ray_trial(0))
    watcher.on_trial_result(0, [], ray_trial(0), {"step": 7, "takeover": None})
    known = trials.read_one(watcher.search, 0)
    assert (known.state, known.judged, watcher.live) == ("running", 7, {0})
    assert [event.trial.state for event in watcher.state.events] == ["running", "running"]


def test_watcher_on_complete_without_summary_records_stopped(watcher: Watcher) -> None:
    watcher.on_trial_start(0, [], ray_trial(0))
    watcher.on_trial_complete(0, [], ray_trial(0))
    assert trials.read_one(watcher.search, 0).state == "stopped"
    assert not watcher.live


def test_watcher_on_complete_with_failed_result_records_the_reason(watcher: Watcher) -> None:
    trial = ray_trial(0)
    trial.last_result = {"failed": "out of disk"}
    watcher.on_trial_complete(0, [], trial)
    known = trials.read_one(watcher.search, 0)
    assert (known.state, known.reason) == ("failed", "out of disk")


def test_watcher_while_stopping_records_no_result(watcher: Watcher) -> None:
    watcher.on_trial_start(0, [], ray_trial(0))
    watcher.stopping = True
    watcher.on_trial_result(0, [], ray_trial(0), {"step": 7, "takeover": None})
    watcher.on_trial_complete(0, [], ray_trial(0))
    known = trials.read_one(watcher.search, 0)
    assert (known.state, known.judged, watcher.live) == ("running", 0, set())


def test_watcher_on_error_records_the_last_line_of_the_error_file(watcher: Watcher, tmp_path: Path) -> None:
    (tmp_path / "error").write_text("Traceback\nValueError: bad\n\n")
    watcher.on_trial_error(0, [], ray_trial(0, pickled_error_file=None, error_file=str(tmp_path / "error")))
    known = trials.read_one(watcher.search, 0)
    assert (known.state, known.reason) == ("failed", "ValueError: bad")


def test_watcher_on_an_unexpected_error_records_its_reason(watcher: Watcher, tmp_path: Path) -> None:
    raised = ray.exceptions.RayTaskError("step", "Traceback …\nmore lines", TrialError("CudaError: the GPU is lost"))  # type: ignore[no-untyped-call]
    path = tmp_path / "error.pkl"
    path.write_bytes(cloudpickle.dumps(raised))  # type: ignore[no-untyped-call]
    trial = ray_trial(0, pickled_error_file=str(path), error_file=None)
    watcher.on_trial_recover(0, [], trial)
    assert watcher.state.notes == ["trial 0000: CudaError: the GPU is lost; it resumes from its last checkpoint"]
    watcher.on_trial_error(0, [], trial)
    assert trials.read_one(watcher.search, 0).reason == "CudaError: the GPU is lost"


def test_watcher_on_the_last_death_of_a_process_names_the_limit(watcher: Watcher) -> None:
    trial = ray_trial(0, pickled_error_file=None, error_file=None)
    watcher.on_trial_recover(0, [], trial)
    assert "its process was killed, or its node lost; it resumes" in watcher.state.notes[0]
    watcher.on_trial_error(0, [], trial)
    assert trials.read_one(watcher.search, 0).reason.endswith("more often than `compute.max_failures`")


def test_watcher_records_a_takeover_after_which_no_validation_came(watcher: Watcher) -> None:
    trial = ray_trial(0)
    watcher.on_trial_result(0, [], trial, {"step": 7, "takeover": None})
    settings = {"train.learning_rate": 0.2}
    trial.config["trial"] |= {"settings": settings, "takeover": {"id": "1", "from": 3}}
    watcher.on_trial_result(0, [], trial, {"step": 7, "takeover": None, "done": True})
    assert not trials.read_one(watcher.search, 0).changes
    watcher.on_trial_result(0, [], trial, {"step": 7, "takeover": "1", "done": True})
    known = trials.read_one(watcher.search, 0)
    assert (known.settings, known.judged, len(known.changes)) == (settings, 7, 1)


def test_watcher_of_a_search_that_another_process_took_over_writes_nothing(watcher: Watcher) -> None:
    path = Path(watcher.search, lease.FILE)
    mine = path.read_text()
    path.write_text(json.dumps({**json.loads(mine), "pid": 1}))
    with pytest.raises(StorageError, match="took its work over"):
        watcher.on_trial_start(0, [], ray_trial(0))
    path.write_text(mine)
    assert trials.read_one(watcher.search, 0).state == "waiting"


def test_stopper_when_asked_stops_all_trials_and_no_single_one() -> None:
    stopper = Stopper()
    assert not stopper.stop_all()
    stopper.asked = True
    assert stopper.stop_all()
    assert not stopper("trial", {})


def test_watcher_at_the_end_names_settings_as_the_run_file_does(watcher: Watcher) -> None:
    trial = SimpleNamespace(config={"trial": {"number": 3, "settings": {"train.learning_rate": 0.1}}})
    watcher.on_experiment_end([trial])
    assert trial.config == {"trial": 3, "train.learning_rate": 0.1}
