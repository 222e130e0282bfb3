"""Live displays of work in progress: a training run, a search, a prediction.

They write to standard error. Without a terminal they print lines instead of a bar or a live table.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.live import Live

from txclf.artifacts import trials
from txclf.cli import console, lines, tables

if TYPE_CHECKING:  # they import Ray
    from txclf.artifacts.trials import Result
    from txclf.training.progress import Progress
    from txclf.tuning.callbacks import SearchState


class TrainingDisplay:
    """Progress of a run on a bar, with a line for each note and each validation."""

    def __init__(self, bar: console.Bar) -> None:
        self.bar = bar
        self.shown_notes = Counter[str]()
        self.is_bundling = False
        self.shown_scores: dict[str, float] = {}

    def show(self, progress: Progress) -> None:
        """Update the bar; print new notes and new validation scores."""
        for note, count in Counter(progress.notes).items():  # those of an earlier stage may be gone
            for _ in range(count - self.shown_notes[note]):
                self.bar.line(note)
            self.shown_notes[note] = max(count, self.shown_notes[note])
        if progress.stage == "preparing":
            self.bar.update(progress.step, progress.total_steps, "rows read")
        elif progress.stage == "bundling":
            if self.bar.rich:
                self.bar.update(progress.step, None, "steps done", title=progress.stage)
            elif not self.is_bundling:  # at once, because nothing else is printed meanwhile
                self.bar.line("bundling: choosing a checkpoint, fitting the linear model on n-grams if there is one")
            self.is_bundling = True
        elif progress.total_steps:
            self.bar.update(progress.step, progress.total_steps, _describe(progress), title=progress.stage)
        else:
            self.bar.update(0, None, "starting")
        if progress.valid and progress.valid != self.shown_scores:
            self.shown_scores = dict(progress.valid)
            named = {name.removeprefix("valid_"): value for name, value in progress.valid.items()}
            named.pop("calibrated_loss", None)  # of which a line of 80 columns has no room
            scores = "  ".join(f"{name} {value:.4f}" for name, value in named.items())
            self.bar.line(f"epoch {progress.epoch:.2f}  step {progress.step:,}  valid {scores}")


def _describe(progress: Progress) -> str:
    """Return the text next to the bar: epoch, loss and speed."""
    loss = "" if math.isnan(progress.train_loss) else f"  loss {progress.train_loss:.4f}"
    return f"epoch {progress.epoch:.2f}{loss}  {progress.tokens_per_second:,.0f} tokens/s"


class SearchDisplay:
    """Live table of a search's trials, or a line for each event without a terminal. Use it as a context manager."""

    def __init__(self) -> None:
        is_live = console.err.is_terminal and not lines.mode.quiet
        self.live = Live(console=console.err, transient=True, auto_refresh=False) if is_live else None
        self.shown_notes = self.shown_events = 0

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def show(self, state: SearchState) -> None:
        """Update the table, or print the new events; print new notes."""
        for note in state.notes[self.shown_notes :]:
            console.note(note)
        self.shown_notes = len(state.notes)
        if self.live:
            results = trials.ranked(list(state.results.values()), state.metric)
            results.sort(key=lambda result: tables.STATES.index(result.trial.state))
            seconds = [state.seconds(result.trial.number) for result in results]
            table = tables.trial_table(_title(state), state.keys, state.metric, results, seconds)
            self.live.update(table, refresh=True)
        else:
            for result in state.events[self.shown_events :]:
                console.note(_event_line(result, state))
            self.shown_events = len(state.events)


def _title(state: SearchState) -> str:
    """Return the number of trials, in all and by state."""
    states = [result.trial.state for result in list(state.results.values())]  # Tune's thread adds to them
    counts = ", ".join(f"{states.count(name)} {name}" for name in tables.STATES if name in states)
    return f"{len(states)} of {state.total} trials: {counts}"


def _event_line(result: Result, state: SearchState) -> str:
    """Return one line about a trial that started, made progress or ended."""
    trial = result.trial
    reason = f": {trial.reason}" if trial.reason else ""
    text = f"trial {trial.number:04d} {trial.state}{reason}"
    if not result.epochs:
        settings = (f"{key} {tables.format_value(value)}" for key, value in trial.settings.items())
        return "  ".join([text, *settings])
    seconds = console.seconds(state.seconds(trial.number))
    return f"{text}  epoch {result.epochs:g}  best {state.metric} {tables.format_best(result)}  {seconds}"


class PredictionDisplay:
    """Progress of a prediction on a bar, with the rows per second since `started`, a monotonic time."""

    def __init__(self, bar: console.Bar, started: float) -> None:
        self.bar = bar
        self.started = started
        self.resumed_rows: int | None = None

    def show(self, rows: int) -> None:
        """Update the bar. The rows of the first call were finished by an earlier command."""
        if self.resumed_rows is None:
            self.resumed_rows = rows
        self.bar.update(rows, None, f"{self.rate(rows - self.resumed_rows)} rows/s")

    def rate(self, rows: int) -> str:
        """Return `rows` per second since `started`, as text."""
        return f"{rows / max(1e-9, time.monotonic() - self.started):,.0f}"
