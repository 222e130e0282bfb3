"""Tables of results on standard output: prepared data, the run summary, the search summary and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from txclf.artifacts import trials
from txclf.artifacts.trials import Result
from txclf.cli import console, lines
from txclf.config.run_config import RunConfig
from txclf.core import storage, text
from txclf.metrics import significance

if TYPE_CHECKING:  # they import Ray
    from txclf.data.shards import Manifest
    from txclf.ngrams.blend import NgramShare
    from txclf.training.pretraining import Pretraining
    from txclf.training.train import RunSummary
    from txclf.tuning.tune import Search

MAX_ROWS = 30
"""Maximum number of trials, or of classes, in a table."""
MAX_LABELS = 10
"""Maximum number of labels whose shares of new rows are shown."""
SMALLEST_P = 0.001
"""Smaller p-values are not told apart."""
STATES = ("running", "finished", "stopped", "failed", "waiting")


def print_run_summary(run: RunConfig, summary: RunSummary) -> None:
    """Print the summary of a finished run."""
    early = ", stopped early" if summary.stopped_early else ""
    rows = [
        *((f"best {name}", f"{value:.4f}") for name, value in summary.best.items() if name == run.train.monitor),
        ("last step" if run.train.train_on_valid else "best at step", f"{summary.best_step:,}"),
        *(
            (name, f"{value:.4f} at that step")
            for name, value in summary.best.items()
            if name not in (run.train.monitor, "valid_calibrated_loss")  # the row `calibration` says what it brings
        ),
        *([("weights", _weights(run, summary))] if run.train.average_checkpoints > 1 else []),
        *([("n-gram model", _ngrams(summary.ngrams))] if run.uses_ngrams else []),
        ("calibration", _calibration(run, summary)),
        *([("thresholds", _thresholds(summary))] if run.task_spec.is_multilabel else []),
        *([("vectors", summary.vectors.describe()[0].partition(": ")[2])] if summary.vectors else []),
        *([("pre-training", _pretraining(summary.pretraining))] if summary.pretraining else []),
        ("steps", f"{summary.steps:,} ({summary.epochs:.2f} epochs{early})"),
        ("rows seen", f"{summary.rows_seen:,}"),
        *([("skipped steps (gradient not finite)", f"{summary.steps_skipped:,}")] if summary.steps_skipped else []),
        *(
            [("attempts", f"{summary.attempts}, {summary.steps_repeated:,} steps repeated")]
            if summary.attempts > 1
            else []
        ),
        ("parameters", f"{summary.parameters:,}"),
        ("tokens/s", f"{summary.tokens_per_second:,.0f}"),
        *([("matrix rate", _matrix_rate(summary))] if summary.mfu else []),
        ("padding share", f"{summary.padding_share:.1%}"),
        ("waiting for data", f"{summary.data_share:.1%} of the steps' time"),
        ("workers", f"{summary.workers} on {summary.device}, {summary.precision}"),
        *((f"time: {name}", console.seconds(value)) for name, value in summary.seconds.items()),
    ]
    console.table(f"Run {run.name}", ["", ""], rows)
    lines.out(f"run folder: {run.run_folder}\nmodel:      {storage.join(run.run_folder, 'model')}")


def _matrix_rate(summary: RunSummary) -> str:
    """Return the model FLOPs utilization and the measured rate that it is a share of."""
    rate = summary.matrix_rate or 0.0
    scale, unit = (1e12, "TFLOP/s") if rate > 1e12 else (1e9, "GFLOP/s")
    return f"{summary.mfu:.1%} (MFU) of the {rate / scale:,.0f} {unit} measured on this device"


def _weights(run: RunConfig, summary: RunSummary) -> str:
    """Return the checkpoints that the bundled weights come from."""
    if summary.averaged:
        return f"mean of steps {', '.join(f'{step:,}' for step in summary.averaged)}"
    if run.train.train_on_valid:
        return "last step, because the validation rows were trained on"
    return f"best step, because the mean of {run.train.average_checkpoints} was not better"


def _ngrams(share: NgramShare | None) -> str:
    """Return the share of the linear model in the answers."""
    if share is None:
        return "no share: the network is better alone"
    return f"weight {share.weight:.2f}: loss {share.loss:.3f}, {share.network_loss:.3f} without"


def _calibration(run: RunConfig, summary: RunSummary) -> str:
    """Return the temperature and the calibration error before and after it."""
    calibration = summary.calibration
    if not calibration:
        return "none, because the validation rows were trained on" if run.train.train_on_valid else "none"
    errors = f"error {calibration.error_before:.4f} before, {calibration.error_after:.4f} after"
    return f"temperature {calibration.temperature:.3f}: {errors}"


def _pretraining(effect: Pretraining) -> str:
    """Return whether the bundle starts from the encoder that learned to predict masked tokens."""
    if effect.value is None or effect.value_from_scratch is None:
        return f"on {effect.rows:,} rows: masked-token loss {effect.loss:.3f}"
    kept = "kept" if effect.kept else "not kept"
    return f"{kept}: {effect.monitor} {effect.value:.4f}, {effect.value_from_scratch:.4f} without"


def _thresholds(summary: RunSummary) -> str:
    """Return the range of the labels' thresholds."""
    if not summary.thresholds:
        return "0.5, because the validation rows were trained on"
    values = summary.thresholds.values()
    return f"from {min(values):.3f} to {max(values):.3f}, chosen on the validation rows"


def print_search_summary(run: RunConfig, search: Search) -> None:
    """Print the trials and the summary of a finished search."""
    results = trials.all_ranked(run.run_folder, search.metric)
    title = f"Search {run.name}: {search.trials} trials, best first"
    results = [
        one._replace(trial=one.trial.model_copy(update={"state": "unfinished"}))
        if one.trial.state == "running"
        else one
        for one in results
    ]
    console.show(
        trial_table(title, list(run.tune.space), search.metric, results, [result.trial.seconds for result in results])
    )
    share = search.epochs / search.epochs_to_the_end
    unfinished = f", {search.unfinished} unfinished" if search.unfinished else ""
    rows = [
        ("winner", f"trial {search.winner:04d}"),
        *(
            (f"best {name}", f"{value:.4f}")
            for name, value in search.best.items()
            if name == search.metric or name != "valid_calibrated_loss"
        ),
        *((key, format_value(value)) for key, value in search.settings.items()),
        ("trials", f"{search.finished} finished, {search.stopped} stopped early, {search.failed} failed{unfinished}"),
        ("epochs", f"{search.epochs:,.1f} of {search.epochs_to_the_end:,.0f} planned ({share:.0%})"),
        *((f"importance of {key}", f"{value:.0%}") for key, value in search.importance.items()),
        ("time", console.seconds(search.seconds)),
    ]
    console.table("Result", ["", ""], rows)
    best, table, model = (storage.join(run.run_folder, name) for name in ("best.yaml", "trials.csv", "model"))
    lines.out(f"winner:     {best}\nall trials: {table}, trials.parquet\nmodel:      {model}")


def trial_table(
    title: str, keys: Sequence[str], metric: str, results: Sequence[Result], seconds: Sequence[float]
) -> Table:
    """Return a table of the first trials, with a column for each searched key; `seconds` is each trial's time."""
    table = Table(title=Text(text.message(title)), title_justify="left", title_style="bold", header_style="")
    short = [key.rpartition(".")[2] for key in keys]
    names = short if len(set(short)) == len(short) else keys
    for name in ("trial", "state", *names, "epoch", metric, "time"):
        table.add_column(Text(name), justify="left" if name == "state" else "right", overflow="fold")
    for result, spent in list(zip(results, seconds, strict=True))[:MAX_ROWS]:
        trial = result.trial
        settings = [format_value(trial.settings.get(key)) for key in keys]
        cells = [f"{trial.number:04d}", trial.state, *settings, f"{result.epochs:g}", format_best(result)]
        table.add_row(*map(Text, [*cells, console.seconds(spent) if spent else ""]))
    if len(results) > MAX_ROWS:
        table.caption = Text(f"{len(results) - MAX_ROWS} more in trials.csv")
    return table


def format_best(result: Result) -> str:
    """Return a trial's best value of the searched metric, empty before its first validation."""
    return "" if math.isnan(result.best) else f"{result.best:.4f}"


def format_value(value: Any) -> str:
    """Return the value of a run-file key, a float with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else text.shown(value)


def print_data_summary(run: RunConfig, folder: str, manifest: Manifest, seconds: float) -> None:
    """Print the splits and the labels of prepared data, and the `seconds` that preparing them took."""
    about = f"{len(manifest.labels)} labels" if manifest.labels else f"{manifest.target_vocab_size:,} target tokens"
    lines.out(f"prepared data: {folder} ({about}, {manifest.vocab_size:,} tokens, {console.seconds(seconds)})")
    console.table(
        "Data",
        ["split", "rows", "bad", "tokens", "truncated", "lost", "duplicates", "in train"],
        [
            [
                name,
                f"{split.rows:,}",
                f"{split.rejected:,}",
                f"{split.tokens:,}",
                f"{split.truncated_rows:,}",
                f"{split.truncated_token_share:.1%}",
                f"{split.duplicates:,}",
                f"{split.duplicates_of_train:,}",
            ]
            for name, split in manifest.splits.items()
        ],
    )
    if run.task_spec.is_multilabel:
        for name, split in manifest.splits.items():
            unlabelled = f"{split.unlabelled_rows:,} of {split.rows:,} rows without a label"
            lines.out(f"{name}: {split.label_cardinality:.2f} labels per row, {unlabelled}")
    if manifest.corrections:
        lines.out(f"corrections: {manifest.corrections.rows:,} row(s), {manifest.corrections.dropped:,} left out")
    if manifest.conflicting_texts:
        noun = run.task_spec.answer_noun
        lines.out(f"{manifest.conflicting_texts:,} text(s) appear in the training files with more than one {noun}")
    for warning in manifest.warnings:
        console.note(f"warning: {warning}")


def print_scores(result: dict[str, Any]) -> None:
    """Print the scores of `evaluate`, of labels or of generated texts."""
    if "bleu" in result:
        console.table(f"Scores on {result['rows']:,} rows, {result['beams']} beams", ["", ""], text_scores(result))
    else:
        print_label_scores(result)
    if result["trained_rows"]:
        share = f"{result['trained_rows']:,} of the {result['rows']:,} rows"
        lines.err(f"leak: the model was trained on the texts of {share}, so the scores may be too good for new texts")


def text_scores(result: dict[str, Any]) -> list[list[str]]:
    """Return the scores of generated texts as rows of a table."""
    names = {"bleu": "BLEU", "chrf": "chrF", "exact_match": "exact match", "token_accuracy": "token accuracy"}
    rows = [
        [title, f"{result[key]:.2f}" if key in ("bleu", "chrf") else f"{result[key]:.4f}"]
        for key, title in names.items()
    ]
    return [*rows, ["perplexity", f"{result['perplexity']:.3f}"], ["seconds", f"{result['seconds']:.1f}"]]


def print_label_scores(result: dict[str, Any]) -> None:
    """Print the scores of predicted labels next to the baselines, then the scores of each class."""
    is_multilabel = "lrap" in result
    if is_multilabel:
        shown = {"f1_macro": "macro F1", "f1_micro": "micro F1", "subset_accuracy": "all labels right"}
    else:
        shown = {"accuracy": "accuracy", "f1_macro": "macro F1", "f1_minority": "F1 of the rarest class"}
    majority = "most frequent labels" if is_multilabel else "majority class"
    names = {"baseline": "n-gram linear model", "majority": majority}
    scored = {"model": result, **{name: result[key] for key, name in names.items() if key in result}}
    rows = [[name, *(f"{scores[key]:.4f}" for key in shown)] for name, scores in scored.items()]
    skipped = f", {result['skipped']:,} bad rows skipped" if result["skipped"] else ""
    console.table(f"Scores on {result['rows']:,} rows{skipped}", ["", *shown.values()], rows)
    if "baseline" in result:
        _print_difference(result, "f1_macro" if is_multilabel else "accuracy")
    titles = {"loss": "loss", "mcc": "MCC", "auroc_macro": "AUROC (macro)", "calibration_error": "calibration error"}
    if is_multilabel:
        titles = {"map": "mean average precision", "lrap": "LRAP", "hamming_loss": "Hamming loss", **titles}
    known = {title: result[key] for key, title in titles.items() if result.get(key) is not None}
    lines.out("  ".join(f"{title} {value:.4f}" for title, value in known.items()))
    if result["temperature"] != 1.0:
        before, after = result["calibration_error_before"], result["calibration_error"]
        errors = f"{before:.4f} before calibration, {after:.4f} after"
        lines.out(f"calibration error {errors} (temperature {result['temperature']:.3f})")
    if sets := result.get("prediction_sets"):
        found = (f"{one['coverage']:.3f} for {asked} ({one['mean_size']:.2f} labels)" for asked, one in sets.items())
        lines.out(f"coverage of sets: {', '.join(found)}")
    _print_class_scores(result["per_class"], is_multilabel)


def print_drift(result: dict[str, Any]) -> None:
    """Print the differences of new rows to known ones, and what follows from them."""
    labels, lengths, words = result["labels"], result["lengths"], result["words"]
    rows: list[Sequence[str]] = [
        ("vectors: AUC of telling them apart", "0.500", f"{result['vectors']['value']:.3f}", _p(result["vectors"])),
        ("predicted labels: distance", "0.000", f"{labels['value']:.3f}", _p(labels)),
        ("words a row, median", f"{lengths['known_median']:g}", f"{lengths['new_median']:g}", _p(lengths)),
        (
            "words not in training rows",
            *(f"{words['unseen'][side]:.1%}" for side in ("known", "new")),
            _p(words["unseen"]),
        ),
    ]
    if accuracy := result.get("accuracy"):
        confidences = (f"{accuracy[name]:.3f}" for name in ("known_confidence", "confidence"))
        rows.append(("mean confidence", *confidences, ""))
        rows.append(("accuracy, expected of new rows", f"{accuracy['known']:.3f}", f"{accuracy['expected']:.3f}", ""))
    skipped = f", {result['skipped']:,} bad rows skipped" if result["skipped"] else ""
    console.table(f"{result['rows']:,} new rows{skipped}", ["", "known", "new", "p"], rows)
    changed = [(label, share) for label, share in labels["shares"].items() if share["new"] != share["known"]]
    if any(finding.startswith("predicted labels") for finding in result["findings"]):
        cells = [[text.shown(label), *(f"{share[name]:.1%}" for name in ("known", "new"))] for label, share in changed]
        console.table("Predicted labels, most changed first", ["label", "known", "new"], cells[:MAX_LABELS])
    if words["typical"]:
        lines.out(f"typical words of new rows: {', '.join(map(text.shown, words['typical']))}")
    for finding in result["findings"] or ["no drift found: the new rows are as the known ones"]:
        lines.out(finding)


def _p(difference: dict[str, Any]) -> str:
    return f"< {SMALLEST_P}" if difference["p_value"] < SMALLEST_P else f"{difference['p_value']:.3f}"


def _print_difference(result: dict[str, Any], key: str) -> None:
    """Print the difference of the model to the n-gram linear model, and whether it may be chance."""
    linear = result["baseline"]
    difference, p_value = result[key] - linear[key], linear["p_value"]
    name = {"accuracy": "accuracy", "f1_macro": "macro F1"}[key]
    chance = f"p < {SMALLEST_P}" if p_value < SMALLEST_P else f"p = {p_value:.3f}"
    verdict = "" if p_value < significance.LEVEL else ": may be chance"
    lines.out(f"{name} {difference:+.4f} against the n-gram linear model ({chance}{verdict})")


def _print_class_scores(per_class: dict[str, dict[str, Any]], is_multilabel: bool) -> None:
    columns = {"precision": "precision", "recall": "recall", "f1": "F1"}
    if is_multilabel:
        columns = {"threshold": "threshold", **columns, "average_precision": "AP"}
    classes = sorted(per_class.items(), key=lambda item: item[1]["f1"])
    more = f" ({len(classes) - MAX_ROWS} more with --json)" if len(classes) > MAX_ROWS else ""
    console.table(
        f"Classes, worst first{more}",
        ["label", *columns.values(), "rows"],
        [
            [
                text.shown(name),
                *("" if score[key] is None else f"{score[key]:.3f}" for key in columns),
                f"{score['support']:,}",
            ]
            for name, score in classes[:MAX_ROWS]
        ],
    )
