"""What a terminal shows of a search while it runs, and of a run or a search when it is done.

A search is a live table, or a line for each thing that happens where there is no terminal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.live import Live
from rich.table import Table
from rich.text import Text

from txclf.artifacts import trials
from txclf.artifacts.trials import Result
from txclf.cli import console
from txclf.config.run_config import RunConfig

if TYPE_CHECKING:  # they bring Ray
    from txclf.data.shards import Manifest
    from txclf.training.train import RunSummary
    from txclf.tuning.callbacks import SearchState
    from txclf.tuning.tune import Search

ROWS = 30
"""Trials that a table shows."""
ORDER = ("running", "finished", "stopped", "failed", "waiting")


class SearchDisplay:
    """Use as a context manager; `show` brings it up to date."""

    def __init__(self) -> None:
        self.live = Live(console=console.err, transient=True, auto_refresh=False) if console.err.is_terminal else None
        self.notes = self.events = 0

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def show(self, standing: SearchState) -> None:
        """Shows where a search stands."""
        for note in standing.notes[self.notes :]:
            console.err.print(note, markup=False)
        self.notes = len(standing.notes)
        if self.live:
            results = trials.ranked(list(standing.results.values()), standing.metric)
            results.sort(key=lambda one: ORDER.index(one.trial.state))
            seconds = [standing.seconds(one.trial.number) for one in results]
            self.live.update(_table(_title(standing), standing.keys, standing.metric, results, seconds), refresh=True)
        else:
            for one in standing.events[self.events :]:
                console.err.print(_line(one, standing), markup=False)
            self.events = len(standing.events)


def print_run_summary(run: RunConfig, summary: RunSummary) -> None:
    """The end of a run, on standard output."""
    seconds, early = summary.seconds, ", stopped early" if summary.stopped_early else ""
    rows = [
        *((f"best {name}", f"{value:.4f}") for name, value in summary.best.items()),
        ("best at step", f"{summary.best_step:,}"),
        *([("weights", _weights(run, summary))] if run.train.average_checkpoints > 1 else []),
        ("calibration", _calibration(run, summary)),
        *([("thresholds", _thresholds(summary))] if run.task == "multilabel" else []),
        *([("vectors", summary.vectors.describe()[0].partition(": ")[2])] if summary.vectors else []),
        (
            "steps",
            f"{summary.steps:,} ({summary.epochs:.2f} epochs{early})",
        ),
        ("rows seen", f"{summary.rows_seen:,}"),
        *([("steps skipped (not finite)", f"{summary.steps_skipped:,}")] if summary.steps_skipped else []),
        *(
            [("attempts", f"{summary.attempts}, {summary.steps_repeated:,} steps twice")]
            if summary.attempts > 1
            else []
        ),
        ("parameters", f"{summary.parameters:,}"),
        ("tokens/s", f"{summary.tokens_per_second:,.0f}"),
        *([("matrix rate", _matrix_rate(summary))] if summary.mfu else []),
        ("padding share", f"{summary.padding_share:.1%}"),
        ("waiting for data", f"{summary.data_share:.1%} of the time of steps"),
        ("workers", f"{summary.workers} on {summary.device}, {summary.precision}"),
        *((f"time: {name}", console.seconds(value)) for name, value in seconds.items()),
    ]
    console.table(f"Run {run.name}", ["", ""], rows)
    print(f"run folder: {run.run_folder}\nmodel:      {run.run_folder}/model")


def _matrix_rate(summary: RunSummary) -> str:
    rate = summary.matrix_rate or 0.0
    scale, unit = (1e12, "TFLOP/s") if rate > 1e12 else (1e9, "GFLOP/s")
    return f"{summary.mfu:.1%} (MFU) of the {rate / scale:,.0f} {unit} measured here"


def _weights(run: RunConfig, summary: RunSummary) -> str:
    if summary.averaged:
        return f"mean of steps {', '.join(f'{step:,}' for step in summary.averaged)}"
    if run.train.train_on_valid:
        return "of the last step: the validation rows were learned from"
    return f"of the best step: the mean of {run.train.average_checkpoints} was worse, or there were no others"


def _calibration(run: RunConfig, summary: RunSummary) -> str:
    found = summary.calibration
    if not found:
        return "none: the validation rows were learned from" if run.train.train_on_valid else "none"
    errors = f"error {found.error_before:.4f} before, {found.error_after:.4f} after"
    return f"temperature {found.temperature:.3f}: {errors}"


def _thresholds(summary: RunSummary) -> str:
    if not summary.thresholds:
        return "0.5: the validation rows were learned from"
    values = summary.thresholds.values()
    return f"from {min(values):.3f} to {max(values):.3f}, chosen on the validation rows"


def print_search_summary(run: RunConfig, search: Search) -> None:
    """The end of a search, on standard output."""
    results = trials.ranked(
        [trials.result(run.run_folder, trial, search.metric) for trial in trials.read(run.run_folder)], search.metric
    )
    title = f"Search {run.name}: {search.trials} trials, best first"
    console.out.print(
        _table(title, list(run.tune.space), search.metric, results, [one.trial.seconds for one in results])
    )
    share = search.epochs / search.epochs_to_the_end
    rows = [
        ("winner", f"trial {search.winner:04d}"),
        *((f"best {name}", f"{value:.4f}") for name, value in search.best.items()),
        *((key, _value(value)) for key, value in search.settings.items()),
        ("trials", f"{search.finished} finished, {search.stopped} stopped early, {search.failed} failed"),
        ("epochs", f"{search.epochs:,.1f} of {search.epochs_to_the_end:,.0f} ({share:.0%}): the rest was saved"),
        *((f"importance of {key}", f"{value:.0%}") for key, value in search.importance.items()),
        ("time", console.seconds(search.seconds)),
    ]
    console.table("Result", ["", ""], rows)
    folder = run.run_folder
    print(f"the winner as a run file: {folder}/best.yaml\nall trials:  {folder}/trials.csv, trials.parquet")
    print(f"model:       {folder}/model")


def _title(standing: SearchState) -> str:
    states = [one.trial.state for one in standing.results.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ORDER if state in states)
    return f"{len(states)} of {standing.total} trials: {counts}"


def _table(title: str, keys: Sequence[str], metric: str, results: Sequence[Result], seconds: Sequence[float]) -> Table:
    shown = Table(title=Text(title), title_justify="left", title_style="bold", header_style="")
    last = [key.rpartition(".")[2] for key in keys]
    names = last if len(set(last)) == len(last) else keys
    for name in ("trial", "state", *names, "epoch", metric, "time"):
        shown.add_column(Text(name), justify="left" if name == "state" else "right", overflow="fold")
    for one, spent in list(zip(results, seconds, strict=True))[:ROWS]:
        settings = [_value(one.trial.settings.get(key)) for key in keys]
        cells = [f"{one.trial.number:04d}", one.trial.state, *settings, f"{one.epochs:g}", _best(one)]
        shown.add_row(*map(Text, [*cells, console.seconds(spent) if spent else ""]))
    if len(results) > ROWS:
        shown.caption = Text(f"{len(results) - ROWS} more in trials.csv")
    return shown


def _line(one: Result, standing: SearchState) -> str:
    reason = f": {one.trial.reason}" if one.trial.reason else ""
    text = f"trial {one.trial.number:04d} {one.trial.state}{reason}"
    if not one.epochs:
        return "  ".join([text, *(f"{key} {_value(value)}" for key, value in one.trial.settings.items())])
    time = console.seconds(standing.seconds(one.trial.number))
    return f"{text}  epoch {one.epochs:g}  best {standing.metric} {_best(one)}  {time}"


def _best(one: Result) -> str:
    return "" if math.isnan(one.best) else f"{one.best:.4f}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def text_scores(result: dict[str, Any]) -> list[list[str]]:
    """The scores of produced texts, as rows of a table."""
    names = {"bleu": "BLEU", "chrf": "chrF", "exact_match": "exact match", "token_accuracy": "token accuracy"}
    rows = [
        [title, f"{result[key]:.2f}" if key in ("bleu", "chrf") else f"{result[key]:.4f}"]
        for key, title in names.items()
    ]
    return [*rows, ["perplexity", f"{result['perplexity']:.3f}"], ["seconds", f"{result['seconds']:.1f}"]]


def labels(run: RunConfig, manifest: Manifest) -> None:
    """What the labels of prepared data are like, on standard output."""
    if run.task == "multilabel":
        for name, split in manifest.splits.items():
            without = f"{split.unlabelled_rows:,} of {split.rows:,} rows have none"
            print(f"{name}: {split.label_cardinality:.2f} labels per row, {without}")
    if manifest.conflicting_texts:
        several = {"multilabel": "set of labels", "seq2seq": "target"}.get(run.task, "label")
        print(f"{manifest.conflicting_texts:,} text(s) stand in the training files under more than one {several}")


def label_scores(result: dict[str, Any]) -> None:
    """The scores of given labels, on standard output."""
    several = "lrap" in result
    if several:
        shown = {"f1_macro": "macro F1", "f1_micro": "micro F1", "subset_accuracy": "all labels right"}
    else:
        shown = {"accuracy": "accuracy", "f1_macro": "macro F1", "f1_minority": "F1 of the rarest class"}
    names = {"baseline": "n-gram logistic regression", "majority": "commonest labels" if several else "majority class"}
    scored = {"model": result, **{name: result[key] for key, name in names.items() if key in result}}
    rows = [[name, *(f"{found[key]:.4f}" for key in shown)] for name, found in scored.items()]
    skipped = f", {result['skipped']:,} bad rows skipped" if result["skipped"] else ""
    console.table(f"Scores on {result['rows']:,} rows{skipped}", ["", *shown.values()], rows)
    names = {"loss": "loss", "mcc": "MCC", "auroc_macro": "AUROC (macro)", "calibration_error": "calibration error"}
    if several:
        names = {"map": "mean average precision", "lrap": "LRAP", "hamming_loss": "Hamming loss", **names}
    there = {title: result[key] for key, title in names.items() if result.get(key) is not None}
    print("  ".join(f"{title} {value:.4f}" for title, value in there.items()))
    if result["temperature"] != 1.0:
        before, after = result["calibration_error_before"], result["calibration_error"]
        told = f"{before:.4f} before calibration, {after:.4f} after"
        print(f"calibration error {told} (temperature {result['temperature']:.3f})")
    columns = {"precision": "precision", "recall": "recall", "f1": "F1"}
    if several:
        columns = {"threshold": "threshold", **columns, "average_precision": "AP"}
    classes = sorted(result["per_class"].items(), key=lambda item: item[1]["f1"])
    console.table(
        "By class, worst first" + (f" ({len(classes) - 30} more in metrics.json)" if len(classes) > 30 else ""),
        ["label", *columns.values(), "rows"],
        [
            [name, *("" if score[key] is None else f"{score[key]:.3f}" for key in columns), f"{score['support']:,}"]
            for name, score in classes[:30]
        ],
    )
