"""`txclf audit`: what the labels of a run say, in a csv file to correct.

    <run>/audit/suspects.csv    rows whose label is probably wrong, the most doubtful first; `corrected` is to be filled
    <run>/audit/rows.csv        every audited row: what the models of the other folds say, its near-duplicates, how it
                                is learned, and how near the next training row is

The rows are those of the training and validation split. Rows with nearly the same text are in one fold, so none of them
teaches the model about another. The test split is left alone, because a test set that is corrected by a model's
suggestions favours that model.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from txclf.artifacts import run_folder as run_folders
from txclf.artifacts.run_folder import RunState
from txclf.auditing import cartography, confident, near_duplicates, nearest
from txclf.auditing.cartography import Map
from txclf.auditing.folds import assign, out_of_fold
from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.core.text import shown
from txclf.data import corrections, shards, writers
from txclf.data.labels import LabelSets
from txclf.metrics.calibration import Labels
from txclf.ngrams import features, fitting
from txclf.ngrams.features import Analyzer
from txclf.ngrams.linear import Floats

FOLDER, SUSPECTS, ROWS = "audit", "suspects.csv", "rows.csv"
SPLITS = ("train", "valid")
MAX_ROWS = 1_000_000
"""Max rows of a split to audit: the first ones, which are drawn at random."""
MAX_MAPPED = fitting.MAX_ROWS
"""Rows of which it is found how they are learned, and how near the next training row is."""
OUTLIER = 0.1
"""Similarity to the nearest training row below which a row is like none."""
MAX_SHOWN = 10
"""Rows and pairs of labels in the summary."""
LABEL, DUPLICATE, NEAR = "label", "duplicate", "near-duplicate"
"""Kinds of suspects: doubted by the models; other labels have the same text; other labels have nearly the same one."""

Ints = npt.NDArray[np.int64]
Answer = tuple[str, ...]
"""Labels of a row, sorted."""


class Rows(NamedTuple):
    """Rows to audit."""

    texts: list[str]
    files: list[str]
    rows: list[int]
    splits: list[str]
    labels: Labels
    """Class ids (rows,), or a mask of the labels of each row (rows, labels)."""


class Audited(NamedTuple):
    """Rows with what the audit says of them."""

    rows: Rows
    given: list[Answer]
    """Labels of each row."""
    suggested: list[Answer]
    kinds: list[list[str]]
    """Kinds of suspicion; empty for a row without."""
    probability: Floats
    """Probability of the given labels (rows,); of several labels per text that of the least likely yes or no."""
    probability_suggested: Floats
    """The same of the suggested labels."""
    groups: Ints
    """Number of the group of near-duplicates (rows,)."""
    map: Map
    """How the first `MAX_MAPPED` rows are learned."""
    similarity: Floats
    """Similarity of these rows to the training row that is most like them."""
    conflicts: dict[str, int]
    """Number of texts, and of groups of near-duplicates, with several answers, by kind."""
    model: str

    @property
    def suspects(self) -> list[int]:
        """Positions of the suspects, the most doubtful first."""
        return [i for i in self.hardest if self.kinds[i]]

    @property
    def hardest(self) -> list[int]:
        """Positions of all rows, the least probable labels first."""
        order: list[int] = np.argsort(self.probability, kind="stable").tolist()
        return order


def audit(
    run_folder: str | os.PathLike[str],
    *,
    folds: int = 5,
    out: str | os.PathLike[str] | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Audit the labels of the training and validation rows of a run, write the csv files and return a summary.

    `out` is their folder, by default `audit` in the run folder. `report` receives the number of folds done, and of
    all folds.

    Raises `ConfigError` for fewer than 2 folds, if the folder is not a run, for a task without labels, for labels that
    contain `data.label_delimiter`, and if corrections have been filled into an earlier `suspects.csv`. Raises
    `DataError` if the prepared data are gone or have too few texts.
    """
    if folds < 2:
        raise ConfigError(f"`folds`: expected 2 or more, found {folds}. Pass 5, for example.")
    folder = storage.path_text(run_folder)
    state = _state(folder)
    target = storage.absolute(storage.path_text(out)) if out is not None else storage.join(state.folder, FOLDER)
    suspects = storage.join(target, SUSPECTS)
    _require_unfilled(suspects)
    _require_joinable(state)
    audited = _audited(state, _rows(state), folds, report)
    join = state.run.data.label_delimiter.join
    columns = _suspect_columns(audited, join)
    _write(storage.join(target, ROWS), _row_columns(audited, join))
    _write(suspects, columns)
    return {
        "run": state.folder,
        "rows": len(audited.given),
        **_summary(audited, columns, join),
        "suspects_file": suspects,
        "rows_file": storage.join(target, ROWS),
    }


def _state(folder: str) -> RunState:
    kind = run_folders.kind(folder)
    if kind == "search":
        raise ConfigError(f"`{folder}`: a search. Pass the folder of one of its trials, {folder}/trials/NUMBER.")
    if kind != "run":
        raise ConfigError(f"`{folder}`: not a run folder. Train a run first, then pass its folder.")
    state = run_folders.read_run(folder)
    if not state.run.task_spec.has_labels:
        raise ConfigError(f"`{folder}`: `task: {state.run.task}` has no labels to audit. Pass a run that classifies.")
    if state.manifest is None:
        raise DataError(f"`{folder}`: its prepared data were removed. Run `txclf prepare {folder}/run.yaml` again.")
    return state


def _require_unfilled(path: str) -> None:
    """Raise `ConfigError` if a person has filled corrections into a file that would be replaced."""
    if storage.exists(path) and corrections.is_filled_in(path):
        raise ConfigError(
            f"`{path}`: corrections are filled in, and this audit would replace the file. Rename it, or pass --out "
            "with another folder."
        )


def _rows(state: RunState) -> Rows:
    """Read the rows of a run, at most `MAX_ROWS` of a split."""
    assert state.manifest is not None
    assert state.prepared is not None
    column = state.run.task_spec.shard_column
    tables, splits = [], []
    for split in SPLITS:
        for table in shards.first_rows(
            state.prepared, state.manifest, split, ["text", "file", "row", column], MAX_ROWS
        ):
            tables.append(table)
            splits += [split] * table.num_rows
    every = pa.concat_tables(tables)
    labels: Labels = (
        LabelSets.from_tables([every]).matrix(len(state.manifest.labels))
        if state.run.task_spec.is_multilabel
        else every[column].to_numpy().astype(np.int64)
    )
    texts, files, numbers = (every[name].to_pylist() for name in ("text", "file", "row"))
    return Rows(texts, files, numbers, splits, labels)


def _audited(state: RunState, rows: Rows, folds: int, report: Callable[[int, int], None]) -> Audited:
    """Find near-duplicates, train the models of all folds, and judge each row."""
    assert state.manifest is not None
    names, lowercase = state.manifest.labels, state.run.tokenizer.lowercase
    normalized = [near_duplicates.normalized(text) for text in rows.texts]
    hashes = shards.text_hashes((text,) for text in normalized)
    groups = near_duplicates.groups(normalized)
    if (distinct := len(np.unique(groups))) < folds:
        raise DataError(
            f"`{state.folder}`: {distinct:,} different texts are too few for {folds} folds. Pass a smaller number with "
            "--folds, or label more rows."
        )
    found = out_of_fold(
        *(rows.texts, rows.labels, assign(hashes, groups, folds)),
        num_labels=len(names),
        lowercase=lowercase,
        report=report,
    )
    given = _answers(rows.labels, names)
    kinds, suggested = _doubted(rows.labels, found.probabilities, names)
    texts = np.unique(hashes, return_inverse=True)[1]
    conflicts = {
        kind: _mark_conflicts(kind, numbers, given, suggested, kinds)
        for kind, numbers in ((DUPLICATE, texts), (NEAR, groups))
    }
    mapped = min(len(given), MAX_MAPPED)
    return Audited(
        rows,
        given,
        suggested,
        kinds,
        probability=_probabilities(found.probabilities, given, names),
        probability_suggested=_probabilities(found.probabilities, suggested, names),
        groups=groups,
        map=_map(rows, mapped, len(names), lowercase),
        similarity=nearest.similarity(
            rows.texts[:mapped], np.array([split == "train" for split in rows.splits[:mapped]]), lowercase=lowercase
        ),
        conflicts=conflicts,
        model=f"n-gram linear model, {found.choice.model.weighting}",
    )


def _map(rows: Rows, mapped: int, num_labels: int, lowercase: bool) -> Map:
    """Return how a linear model on words and word pairs learns the first rows."""
    counts = fitting.kept(features.count(rows.texts[:mapped], Analyzer(words=2, lowercase=lowercase)), num_labels)
    return cartography.data_map(fitting.weighted(counts, "tfidf")[0], rows.labels[:mapped], num_labels)


def _answers(labels: Labels, names: Sequence[str]) -> list[Answer]:
    """Return the labels of each row by their names, sorted as those of a file are."""
    if labels.ndim == 1:
        return [(names[label],) for label in labels.tolist()]
    return [tuple(sorted(compress(names, row))) for row in labels.tolist()]


def _doubted(labels: Labels, probabilities: Floats, names: Sequence[str]) -> tuple[list[list[str]], list[Answer]]:
    """Return the kinds of suspicion by the models, and the labels that they suggest."""
    if labels.ndim == 1:
        is_suspect = confident.suspects(probabilities, labels.astype(np.int64))
        suggested: Labels = probabilities.argmax(axis=1)
    else:
        wrong = confident.suspect_labels(probabilities, labels.astype(np.bool_))
        is_suspect, suggested = np.asarray(wrong.any(axis=1)), labels.astype(np.bool_) ^ wrong
    return [[LABEL] if is_one else [] for is_one in is_suspect.tolist()], _answers(suggested, names)


def _probabilities(probabilities: Floats, answers: Sequence[Answer], names: Sequence[str]) -> Floats:
    """Return the probability of the labels of each row (rows,), that of the least likely yes or no."""
    numbers = {name: number for number, name in enumerate(names)}
    targets = np.zeros(probabilities.shape, np.bool_)
    for i, answer in enumerate(answers):
        targets[i, [numbers[label] for label in answer]] = True
    return np.asarray(np.where(targets, probabilities, 1 - probabilities).min(axis=1), np.float32)


def _mark_conflicts(
    kind: str, groups: Ints, given: Sequence[Answer], suggested: list[Answer], kinds: list[list[str]]
) -> int:
    """Mark the rows whose labels differ from those of other rows of their group, and count these groups.

    In a group, the rows without its most frequent answer are marked, and that answer is suggested. If several are
    equally frequent, all rows are marked. A row that is marked as a duplicate is not marked as a near-duplicate.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i in np.flatnonzero(np.bincount(groups)[groups] > 1).tolist():
        members[int(groups[i])].append(i)
    count = 0
    for rows in members.values():
        votes = Counter(given[i] for i in rows).most_common()
        if len(votes) == 1:
            continue
        count += 1
        is_tied = votes[0][1] == votes[1][1]
        for i in rows:
            if DUPLICATE in kinds[i] or (given[i] == votes[0][0] and not is_tied):
                continue
            kinds[i].append(kind)
            if not is_tied:
                suggested[i] = votes[0][0]
            elif suggested[i] == given[i]:
                suggested[i] = next(answer for answer, _ in votes if answer != given[i])
    return count


def _require_joinable(state: RunState) -> None:
    """Raise `ConfigError` if the delimiter between the labels of a row is part of a label."""
    assert state.manifest
    delimiter = state.run.data.label_delimiter
    wrong = next((label for label in state.manifest.labels if delimiter in label), None)
    if state.run.task_spec.is_multilabel and wrong is not None:
        raise ConfigError(
            f"`{shown(wrong)}`: the label contains `data.label_delimiter` ({delimiter}), so a csv file cannot hold the "
            "labels of a row. Train with another `data.label_delimiter`."
        )


def _suspect_columns(audited: Audited, join: Callable[[Answer], str]) -> dict[str, list[Any]]:
    """Return the columns of the suspects, the most doubtful first."""
    rows, order = audited.rows, audited.suspects
    keys = corrections.keys([rows.texts[i] for i in order], [audited.given[i] for i in order])
    return {
        "file": [rows.files[i] for i in order],
        "row": [rows.rows[i] for i in order],
        "text": [rows.texts[i] for i in order],
        "label": [join(audited.given[i]) for i in order],
        "suggested": [join(audited.suggested[i]) or corrections.NO_LABEL for i in order],
        corrections.CORRECTED: [None] * len(order),
        "probability": [round(float(audited.probability[i]), 4) for i in order],
        "probability_suggested": [round(float(audited.probability_suggested[i]), 4) for i in order],
        "kind": ["+".join(audited.kinds[i]) for i in order],
        corrections.KEY: [corrections.key_text(key) for key in keys.tolist()],
    }


def _row_columns(audited: Audited, join: Callable[[Answer], str]) -> dict[str, list[Any]]:
    """Return the columns of all rows, the hardest first; `group` is blank for a text without near-duplicates."""
    rows, order = audited.rows, audited.hardest
    is_repeated = np.bincount(audited.groups)[audited.groups] > 1
    return {
        "file": [rows.files[i] for i in order],
        "row": [rows.rows[i] for i in order],
        "split": [rows.splits[i] for i in order],
        "label": [join(audited.given[i]) for i in order],
        "suggested": [join(audited.suggested[i]) for i in order],
        "probability": [round(float(audited.probability[i]), 4) for i in order],
        "kind": ["+".join(audited.kinds[i]) for i in order],
        "group": [int(audited.groups[i]) if is_repeated[i] else None for i in order],
        "confidence": _of_mapped(audited.map.confidence, order),
        "variability": _of_mapped(audited.map.variability, order),
        "similarity": _of_mapped(audited.similarity, order),
    }


def _of_mapped(values: Floats, order: Sequence[int]) -> list[float | None]:
    return [round(float(values[i]), 4) if i < len(values) else None for i in order]


def _write(path: str, columns: dict[str, list[Any]]) -> None:
    with writers.atomic_stream(path, None) as stream:
        stream.write(writers.encode("csv", {name: [name] for name in columns}))
        stream.write(writers.encode("csv", columns))


def _summary(audited: Audited, columns: dict[str, list[Any]], join: Callable[[Answer], str]) -> dict[str, Any]:
    """Return the counts, the most frequent pairs of labels, and the most doubtful, ambiguous rows and outliers."""
    pairs = Counter(zip(columns["label"], columns["suggested"], strict=True)).most_common(MAX_SHOWN)
    sizes = np.bincount(audited.groups)
    shown_names = [name for name in columns if name not in (corrections.CORRECTED, "text")]
    return {
        "model": audited.model,
        "suspects": len(columns["row"]),
        "kinds": {kind: sum(kind in kinds for kinds in audited.kinds) for kind in (LABEL, DUPLICATE, NEAR)},
        "conflicting_texts": audited.conflicts[DUPLICATE],
        "conflicting_groups": audited.conflicts[NEAR],
        "near_duplicate_groups": int((sizes > 1).sum()),
        "near_duplicate_rows": int(sizes[sizes > 1].sum()),
        "pairs": [{"label": label, "suggested": other, "rows": count} for (label, other), count in pairs],
        "most_doubtful": [
            {"text": shown(columns["text"][n], 300)} | {name: columns[name][n] for name in shown_names}
            for n in range(min(MAX_SHOWN, len(columns["row"])))
        ],
        "most_ambiguous": _listed(audited, join, "variability", audited.map.variability, largest=True),
        "outlier_rows": int((audited.similarity < OUTLIER).sum()),
        "outliers": _listed(audited, join, "similarity", audited.similarity),
    }


def _listed(
    audited: Audited, join: Callable[[Answer], str], name: str, values: Floats, *, largest: bool = False
) -> list[dict[str, Any]]:
    """Return the rows with the lowest values, or the largest ones."""
    rows = audited.rows
    return [
        {
            "text": shown(rows.texts[i], 300),
            "file": rows.files[i],
            "row": rows.rows[i],
            "label": join(audited.given[i]),
            name: round(float(values[i]), 4),
        }
        for i in np.argsort(-values if largest else values, kind="stable")[:MAX_SHOWN].tolist()
    ]
