"""Scored splits and headline of a run's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from txclf.artifacts.run_folder import RunState
from txclf.core import storage
from txclf.core.errors import TxclfError
from txclf.data import shards
from txclf.evaluation import evaluate
from txclf.inference.bundle import read_metadata
from txclf.inference.classifier import Classifier
from txclf.inference.seq2seq import Seq2Seq
from txclf.metrics import significance
from txclf.reports import error_analysis
from txclf.reports.content import Bar, ExampleSplit, Headline, LabelSplit
from txclf.reports.error_analysis import Budget
from txclf.reports.formatting import TITLES, titled

Metrics = Mapping[str, Any]


def evaluation(state: RunState) -> dict[str, Any] | None:
    """Return the result of `txclf evaluate`, of the test split if that was scored; None without an evaluation."""
    for name in (evaluate.METRICS, evaluate.OTHER_METRICS):
        path = storage.join(state.folder, name)
        if storage.exists(path):
            return storage.read_object(path)
    return None


def scored_splits(
    state: RunState, tested: Metrics | None, budget: Budget, notes: list[str]
) -> list[LabelSplit | ExampleSplit]:
    """Score the test split, if the run was evaluated on it, and the validation split, unless the model trained on it.

    Reasons for missing splits are appended to `notes`.
    """
    manifest = state.manifest
    if not state.summary or not manifest:
        return []
    wanted = [("test", "Test")] if tested and tested["data"] == "test" and "test" in manifest.splits else []
    if state.run.train.train_on_valid:
        notes.append("The model was trained on the validation rows, so they are not scored.")
    else:
        wanted.append(("valid", "Validation"))
    splits: list[LabelSplit | ExampleSplit] = []
    try:
        folder = storage.join(state.folder, "model")
        if read_metadata(folder).task_spec.is_seq2seq:
            model = Seq2Seq.load(folder)
            splits += [_example_split(model, state, manifest, tested, name=name, title=title) for name, title in wanted]
            return splits
        classifier = Classifier.load(folder)
        for name, title in wanted:
            splits.append(_label_split(classifier, state, manifest, tested, name=name, title=title, budget=budget))
    except TxclfError as error:
        notes.append(f"The bundle could not be scored: {error}")
    return splits


def _example_split(
    model: Seq2Seq, state: RunState, manifest: shards.Manifest, tested: Metrics | None, *, name: str, title: str
) -> ExampleSplit:
    """Return the examples of one split with the scores that the run folder holds."""
    assert state.prepared
    metrics = tested if name == "test" else state.summary and state.summary["best"]
    return error_analysis.example_split(model, state.prepared, manifest, split=name, title=title, metrics=metrics or {})


def _label_split(
    classifier: Classifier,
    state: RunState,
    manifest: shards.Manifest,
    tested: Metrics | None,
    *,
    name: str,
    title: str,
    budget: Budget,
) -> LabelSplit:
    """Score one split.

    The baselines come from `metrics.json` if that is about the same rows, all of the split. Those of the validation
    split are trained here for single labels, unless the test split was scored.
    """
    assert state.prepared
    scored = error_analysis.score(classifier, state.prepared, manifest, name, budget)
    scores: Metrics = tested if tested and name == "test" and len(scored.labels) == tested["rows"] else {}
    if name == "valid" and not (tested and tested["data"] == "test") and not classifier.is_multilabel:
        lowercase = state.run.tokenizer.lowercase
        scores = error_analysis.baseline_scores(scored, state.prepared, manifest, lowercase=lowercase, budget=budget)
    compared = {key: scores[key] for key in ("baseline", "majority") if key in scores}
    return error_analysis.label_split(scored, classifier, split=name, title=title, compared=compared, budget=budget)


def headline(state: RunState, splits: Sequence[LabelSplit], tested: Metrics | None) -> Headline | None:
    """Return the score at the top of the page, next to those of the baselines; None before the first validation.

    It is the metric that ranked the checkpoints; accuracy if that was the loss.
    """
    spec, monitor = state.run.task_spec, state.run.train.monitor
    if spec.is_seq2seq:
        return _generation_headline(state, tested)
    metric = "f1_macro" if spec.is_multilabel or monitor == "valid_f1_macro" else "accuracy"
    if tested:
        is_test = tested["data"] == "test"
        scored = next((one for one in splits if is_test and one.id == "test" and one.rows == tested["rows"]), None)
        majority = "most frequent labels" if spec.is_multilabel else "majority class"
        return _evaluation_headline(metric, tested, scored.intervals.get(metric) if scored else None, majority)
    if splits:
        return _split_headline(metric, splits[0])
    value = state.scores.get(f"valid_{metric}")
    return None if value is None else Headline(title=TITLES[metric], value=value, where="validation")


def _generation_headline(state: RunState, tested: Metrics | None) -> Headline | None:
    """Return BLEU, or the first of exact match and token accuracy that is known."""
    scores = dict(titled(tested or state.scores))
    where = _evaluated_rows(tested) if tested else "validation"
    title = next((title for title in ("BLEU", "exact match", "token accuracy") if title in scores), None)
    return None if title is None else Headline(title=title, value=scores[title], where=where)


def _evaluation_headline(metric: str, tested: Metrics, interval: tuple[float, float] | None, majority: str) -> Headline:
    """Return the score of `metrics.json`."""
    value = tested[metric]
    return Headline(
        title=TITLES[metric],
        value=value,
        interval=interval,
        where=_evaluated_rows(tested),
        rows=tested["rows"],
        bars=_bars(metric, value, tested, majority=majority),
        beats_baseline=value > tested["baseline"][metric] if "baseline" in tested else None,
        difference=_difference(tested.get("baseline", {}), metric),
        note=_note(tested.get("baseline", {}), metric),
    )


def _split_headline(metric: str, split: LabelSplit) -> Headline:
    """Return the score of a split that was scored for this page."""
    value, linear = split.metrics[metric], split.compared.get("baseline", {})
    return Headline(
        title=TITLES[metric],
        value=value,
        interval=split.intervals.get(metric),
        where=split.title.lower(),
        rows=split.rows,
        bars=_bars(metric, value, split.compared, majority="majority class"),
        beats_baseline=value > linear[metric] if linear else None,
        difference=_difference(linear, metric),
        note=_note(linear, metric),
    )


def _difference(linear: Metrics, metric: str) -> tuple[float, float, float] | None:
    """Return the difference of a metric to the linear model with its interval; None if it was not measured."""
    found = linear.get("difference", {}).get(metric)
    return None if found is None else (found[0], found[1], found[2])


def _note(linear: Metrics, metric: str) -> str:
    """Return what to know about the comparison of a metric with that of the linear model."""
    notes = []
    p_value = linear.get("p_value", 0.0)
    if metric == "f1_macro":
        p_value = linear.get("f1_macro_p_value", p_value)  # not in scores of earlier versions
    if p_value >= significance.LEVEL:
        notes.append(f"On these rows the difference may be chance (p = {p_value:.2f}).")
    if linear.get("train_rows", 0) < linear.get("of_train_rows", 0):
        used, rows = linear["train_rows"], linear["of_train_rows"]
        notes.append(f"The baseline was trained on {used:,} of {rows:,} training rows.")
    return " ".join(notes)


def _bars(metric: str, value: float, compared: Metrics, *, majority: str) -> list[Bar]:
    """Return the score of the model and those of the baselines that were scored."""
    titles = {"baseline": "n-gram linear model", "majority": majority}
    return [
        Bar("this model", value),
        *(Bar(title, compared[key][metric]) for key, title in titles.items() if key in compared),
    ]


def _evaluated_rows(tested: Metrics) -> str:
    """Name the rows that `txclf evaluate` scored."""
    return "test" if tested["data"] == "test" else "other files"
