"""Live displays of a run, a search and a prediction."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from txclf.artifacts.trials import Result, Trial
from txclf.cli import console, displays
from txclf.config import run_config
from txclf.training.progress import Progress
from txclf.tuning.callbacks import SearchState


def state() -> SearchState:
    """Return a search with one running and one failed trial."""
    run = run_config.parse({"tune": {"space": {"train.learning_rate": {"choice": [0.1, 0.2]}}, "trials": 5}})
    running = Result(Trial(number=0, settings={"train.learning_rate": 0.1}, state="running"), 2.0, 0.25, 20, 2.0)
    failed = Trial(number=1, settings={"train.learning_rate": 0.2}, state="failed", reason="no memory")
    return SearchState(run, [running, Result(failed, 0.0, float("nan"), 0, 0.0)])


def test_training_display_prints_each_note_and_each_validation_once(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Bar("training") as bar:
        display = displays.TrainingDisplay(bar)
        display.show(Progress(notes=["a note"]))
        progress = Progress(step=5, total_steps=10, epoch=0.5, valid={"valid_loss": 0.25}, notes=["a note", "another"])
        display.show(progress)
        display.show(progress)
        display.show(Progress(notes=["a note"]))  # the next stage has the notes of the first and its own
        display.show(Progress(notes=["a note", "a third", "a third"]))
    notes = ["a note", "another", "epoch 0.50  step 5  valid loss 0.2500", "a third", "a third"]
    assert capsys.readouterr().err.splitlines() == notes


def test_training_display_describes_stage_loss_and_speed(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Bar("training") as bar:
        bar.printed -= console.PLAIN_SECONDS
        progress = Progress("validating", step=5, total_steps=10, epoch=0.5, train_loss=0.125, tokens_per_second=1234.0)
        displays.TrainingDisplay(bar).show(progress)
        displays.TrainingDisplay(bar).show(Progress("bundling", 7, 7))
    assert capsys.readouterr().err.splitlines() == [
        "validating: 5 of 10 epoch 0.50  loss 0.1250  1,234 tokens/s",
        "bundling: choosing a checkpoint, fitting the linear model on n-grams if there is one",
    ]


def test_search_display_without_a_terminal_prints_each_event_once(capsys: pytest.CaptureFixture[str]) -> None:
    search = state()
    search.events += [search.results[0], search.results[1]]
    search.notes.append("a note")
    search.began[0] = time.time() - 12.2
    with displays.SearchDisplay() as display:
        display.show(search)
        display.show(search)
    assert capsys.readouterr().err.splitlines() == [
        "a note",
        "trial 0000 running  epoch 2  best valid_calibrated_loss 0.2500  12 s",
        "trial 0001 failed: no memory  train.learning_rate 0.2",
    ]


def test_search_display_on_a_terminal_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True, width=100, highlight=False))
    with displays.SearchDisplay() as display:
        display.show(state())
    shown = screen.getvalue()
    assert all(part in shown for part in ("2 of 5 trials: 1 running, 1 failed", "learning_rate", "0.2500"))


def test_prediction_display_rate_leaves_out_the_resumed_rows(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Bar("predicting") as bar:
        display = displays.PredictionDisplay(bar, time.monotonic() - 1000)
        display.show(7_000)
        bar.printed -= console.PLAIN_SECONDS
        display.show(9_000)
    assert display.resumed_rows == 7_000
    assert capsys.readouterr().err == "predicting: 9,000 2 rows/s\n"
