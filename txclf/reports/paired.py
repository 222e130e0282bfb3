"""Several runs on the same rows: which one is better, in which classes, and where their predictions differ.

Rows are the same if their text, their labels and their place in the file are. Runs with other splits, or without a
bundle, are left out.

Shapes: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from txclf.artifacts.run_folder import RunState
from txclf.core import storage
from txclf.core.errors import TxclfError
from txclf.core.text import distinct, number
from txclf.inference.bundle import read_metadata
from txclf.inference.classifier import Classifier
from txclf.metrics import intervals, significance
from txclf.reports import error_analysis
from txclf.reports.error_analysis import Budget, ScoredRows, TextRow
from txclf.reports.formatting import TITLES, signed
from txclf.reports.paired_content import ComparedClass, Disagreement, PairedRun, PairedRuns

MAX_DISAGREEMENTS = 100
"""Rows with different predictions that are shown."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Key = tuple[int, str, tuple[str, ...]]
"""Row in its file, text and true labels."""


class Answers(NamedTuple):
    """Predictions of one run for the common rows."""

    name: str
    predicted: Bools
    """Mask of the predicted labels (N, C)."""
    confidence: Floats
    """Highest probability of each row (N,)."""


def paired(states: Sequence[RunState], names: Sequence[str], budget: Budget, notes: list[str]) -> PairedRuns | None:
    """Return the comparison on the rows that the runs have in common, best run first; None for less than two runs.

    Reasons for runs that are left out are appended to `notes`.
    """
    usable = [(state, name) for state, name in zip(states, names, strict=True) if _is_usable(state, name, notes)]
    if len(usable) < 2:
        return None
    split = "test" if all(state.has_test and _is_evaluated(state) for state, _ in usable) else "valid"
    if split == "valid" and (trained := [name for state, name in usable if state.run.train.train_on_valid]):
        notes.append(f"`{trained[0]}` was trained on the validation rows, so the runs are not compared on them.")
        return None
    if len(tasks := sorted({state.run.task for state, _ in usable})) > 1:
        notes.append(f"The runs are not compared row by row, because their tasks differ: {', '.join(tasks)}.")
        return None
    try:
        scored = [_scored(state, split, budget) for state, _ in usable]
    except TxclfError as error:
        notes.append(f"The runs are not compared on the same rows: {error}")
        return None
    common = [key for key in scored[0][1] if all(key in places for _, places in scored[1:])]
    if not common:
        notes.append("The runs have no rows in common, so they are not compared row by row.")
        return None
    labels = list(dict.fromkeys(label for classifier, _ in scored for label in classifier.labels))
    targets = _mask([key[2] for key in common], labels)
    answers = [
        _answers(name, classifier, [places[key] for key in common], labels)
        for (_, name), (classifier, places) in zip(usable, scored, strict=True)
    ]
    sources = [scored[0][1][key][0] for key in common]
    return _compared(targets, answers, sources, distinct(labels), split=split, is_multilabel=tasks == ["multilabel"])


def _is_usable(state: RunState, name: str, notes: list[str]) -> bool:
    """Return True if a run can be scored; note the reason if not."""
    if state.summary and state.manifest and state.run.task_spec.has_labels:
        return True
    if state.run.task_spec.has_labels:
        reason = "it is not finished" if not state.summary else "its prepared data are gone"
        notes.append(f"`{name}` is not compared row by row, because {reason}.")
    return False


def _is_evaluated(state: RunState) -> bool:
    """Return True if the test split was scored before: a page does not look at it first."""
    return storage.exists(storage.join(state.folder, "metrics.json"))


def _scored(
    state: RunState, split: str, budget: Budget
) -> tuple[Classifier, dict[Key, tuple[TextRow, npt.NDArray[np.float32]]]]:
    """Return the model of a run, and the source and logits of each row."""
    assert state.prepared
    assert state.manifest
    folder = storage.join(state.folder, "model")
    read_metadata(folder)
    classifier = Classifier.load(folder)
    rows: ScoredRows = error_analysis.score(classifier, state.prepared, state.manifest, split, budget)
    found = {}
    for source, label, logits in zip(rows.sources, rows.labels, rows.logits, strict=True):
        ids = np.flatnonzero(label) if classifier.is_multilabel else [label]
        true = tuple(sorted(classifier.labels[int(i)] for i in ids))
        found[source.row, source.text, true] = (source, logits)
    return classifier, found


def _mask(label_sets: Sequence[Sequence[str]], labels: Sequence[str]) -> Bools:
    """Return which labels each row has (N, C)."""
    columns, mask = {label: i for i, label in enumerate(labels)}, np.zeros((len(label_sets), len(labels)), np.bool_)
    for row, label_set in enumerate(label_sets):
        mask[row, [columns[label] for label in label_set]] = True
    return mask


def _answers(name: str, classifier: Classifier, rows: Sequence[tuple[TextRow, Any]], labels: Sequence[str]) -> Answers:
    """Return the predictions of one run as masks over the labels of all runs."""
    probabilities = classifier.calibrated(np.stack([logits for _, logits in rows]))
    if classifier.is_multilabel:
        own = probabilities >= classifier.thresholds
    else:
        own = np.eye(len(classifier.labels), dtype=np.bool_)[probabilities.argmax(axis=1)]
    predicted = np.zeros((len(rows), len(labels)), np.bool_)
    predicted[:, [labels.index(label) for label in classifier.labels]] = own
    return Answers(name, predicted, probabilities.max(axis=1))


def _compared(
    targets: Bools,
    answers: Sequence[Answers],
    sources: Sequence[TextRow],
    labels: Sequence[str],
    *,
    split: str,
    is_multilabel: bool,
) -> PairedRuns:
    """Return the comparison of predictions for the same rows, best run first."""
    micro = "f1_micro" if is_multilabel else "accuracy"
    metric = "f1_macro" if is_multilabel else "accuracy"
    truth, classes = _ids(targets, is_multilabel), len(labels)
    scored = [(one, intervals.of_scores(truth, _ids(one.predicted, is_multilabel), classes)) for one in answers]
    scored.sort(key=lambda item: -(item[1].macro if is_multilabel else item[1].micro).value)
    best, runs = scored[0][0], list[PairedRun]()
    comparisons = len(scored) * (len(scored) - 1) // 2  # all pairs, because the best is found on the same rows
    per_class: list[intervals.Interval] = []
    for one, own in scored:
        difference, p_value = None, None
        if one is not best:
            first, second = (_ids(answer.predicted, is_multilabel) for answer in (best, one))
            found = intervals.of_differences(truth, first, second, classes, comparisons)
            difference = tuple(found.macro if is_multilabel else found.micro)
            p_alone = found.p_value if is_multilabel else significance.mcnemar(first == truth, second == truth)
            p_value = min(1.0, p_alone * comparisons)
            per_class = per_class or found.classes
        scores = {micro: tuple(own.micro), "f1_macro": tuple(own.macro)}
        runs.append(PairedRun(name=one.name, scores=scores, difference=difference, p_value=p_value))
    support = targets.sum(axis=0).tolist()
    ordered = [one for one, _ in scored]
    shown, count = _disagreements(targets, ordered, sources, labels, is_multilabel)
    return PairedRuns(
        split={"test": "test", "valid": "validation"}[split],
        rows=len(targets),
        metric=metric,
        verdict=verdict(runs, metric),
        runs=runs,
        classes=[
            ComparedClass(label, support[i], [own.classes[i].value for _, own in scored], tuple(per_class[i]))
            for i, label in enumerate(labels)
        ],
        disagreements=shown,
        disagreeing_rows=count,
    )


def _ids(masks: Bools, is_multilabel: bool) -> npt.NDArray[Any]:
    """Return class ids of masks with one label per row; multilabel masks stay as they are."""
    return masks if is_multilabel else masks.argmax(axis=1)


def verdict(runs: Sequence[PairedRun], metric: str) -> str:
    """Say which run is better, and whether the difference may be chance."""
    best, title = runs[0], TITLES[metric]
    score = number(best.scores[metric][0])
    chance = [run for run in runs[1:] if run.p_value is not None and run.p_value >= significance.LEVEL]
    if all(run.scores[metric][0] == best.scores[metric][0] for run in runs):
        return f"All runs have the same {title}, {score}."
    if not chance:
        others = _quoted(runs[1]) if len(runs) == 2 else "every other run"
        return f"{_quoted(best)} is better than {others}: {title} {score}, {_against(runs[1])}."
    highest = f"{_quoted(best)} has the highest {title}, {score}"
    if len(chance) == len(runs) - 1:
        return f"No run is clearly better. {highest}, but {_against(runs[1])} may be chance."
    return f"{highest}, but its difference to {', '.join(map(_quoted, chance))} may be chance."


def _quoted(run: PairedRun) -> str:
    """Return the name of a run in quotation marks."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{run.name}\N{RIGHT DOUBLE QUOTATION MARK}"


def _against(run: PairedRun) -> str:
    """Return the difference of the best run to another one, with its p-value."""
    assert run.difference is not None
    assert run.p_value is not None
    p = "p < 0.001" if run.p_value < 0.001 else f"p = {run.p_value:.3f}"
    return f"{signed(run.difference[0])} against {_quoted(run)} ({p})"


def _disagreements(
    targets: Bools, answers: Sequence[Answers], sources: Sequence[TextRow], labels: Sequence[str], is_multilabel: bool
) -> tuple[list[Disagreement], int]:
    """Return rows with different predictions and their number: first those that some runs predict right."""
    differ = np.any([(one.predicted != answers[0].predicted).any(axis=1) for one in answers[1:]], axis=0)
    right = np.stack([(one.predicted == targets).all(axis=1) for one in answers])
    surest = np.stack([one.confidence for one in answers]).max(axis=0)
    rows = np.flatnonzero(differ)
    order = rows[np.lexsort((-surest[rows], ~right[:, rows].any(axis=0)))][:MAX_DISAGREEMENTS].tolist()

    def named(mask: Bools) -> str:
        return ", ".join(labels[i] for i in np.flatnonzero(mask).tolist()) or error_analysis.NO_LABEL

    return [
        Disagreement(
            text=error_analysis.shortened(sources[row].text),
            file=sources[row].file,
            row=sources[row].row,
            label=named(targets[row]),
            predicted=[named(one.predicted[row]) for one in answers],
            confidence=[None if is_multilabel else float(one.confidence[row]) for one in answers],
            right=right[:, row].tolist(),
        )
        for row in order
    ], len(rows)
