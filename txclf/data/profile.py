"""Profile of raw files before preparing: columns, labels, lengths, duplicates, conflicts, bad rows.

    first rows of all columns ─▶ guess the text column and the label column
    all rows of these two     ─▶ the audit, with 20 bytes per row in memory

The profile changes nothing: `txclf prepare` reads the files itself, with the settings of the run file.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from txclf.core.errors import DataError
from txclf.data import records, shards
from txclf.data.label_warnings import label_warnings
from txclf.data.sources import Source, unchanged

SAMPLE_ROWS = 10_000
"""Rows from which the columns are guessed."""
SAMPLE_CHARS = 2**26
"""Characters of these rows after which there are no more of them."""
MAX_ROWS = 2_000_000
"""Maximum number of rows that are audited."""
MAX_SHOWN = 20
TEXT_NAMES = ("text", "sentence", "content", "body", "review", "question", "message", "comment", "document", "source")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "intent", "sentiment", "topic", "tag", "y")
SPLITS = {"valid": r"(^|[^a-z])(valid|validation|val|dev)([^a-z]|$)", "test": r"(^|[^a-z])(test|eval)([^a-z]|$)"}
RARE_ROWS = 20
IMBALANCE = 10.0
"""Ratio of the rows of the commonest and the rarest label above which classes count as imbalanced."""
WORD = re.compile(r"\w+|[^\w\s]")


def audit(path: str, sources: Sequence[Source], text: Sequence[str], label: str | None) -> dict[str, Any]:
    """Return the audit of files. `text` and `label` name the columns; without them the columns are guessed.

    Raises `DataError` for files that cannot be read, and for missing columns.
    """
    with unchanged(sources):
        return _audit(path, sources, text, label)


def _audit(path: str, sources: Sequence[Source], text: Sequence[str], label: str | None) -> dict[str, Any]:
    columns, rows = _columns(sources)
    if not rows:
        raise DataError(f"`{path}`: no row, only empty files or headers. Name files with rows.")
    text_columns = list(text) or [_text(columns)]
    label_column = label or _label(columns, text_columns, rows)
    found: dict[str, Any] = {
        "kind": "data",
        "path": path,
        "files": len(sources),
        "formats": sorted({source.format for source in sources}),
        "text": text_columns,
        "label": label_column,
        "columns": columns,
    }
    listed = label_column is not None and columns_of(columns, label_column).get("kinds") == ["list"]
    if listed:
        found["note"] = f"`{label_column}` holds lists, so rows have several labels. The audit does not count them."
    found |= _rows(sources, text_columns, None if listed else label_column)
    task = {"task": "multilabel"} if listed else {}
    return {**found, "suggested": {**task, **suggested(path, sources, found)}}


def columns_of(columns: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return a column by its name; empty if there is no such column."""
    return next((column for column in columns if column["column"] == name), {})


def _columns(sources: Sequence[Source]) -> tuple[list[dict[str, Any]], int]:
    """Return the facts about each column from the first rows, and the number of these rows."""
    values: dict[str, list[Any]] = {}
    rows = chars = 0
    for source in sources:
        for batch in records.read_raw(source):
            for name, column in batch.columns.items():
                values.setdefault(name, [None] * rows).extend(column)
                chars += sum(len(value) for value in column if isinstance(value, str))
            rows += len(batch.rows)
            for column in values.values():
                column.extend([None] * (rows - len(column)))
            if rows >= SAMPLE_ROWS or chars >= SAMPLE_CHARS:
                break
        if rows >= SAMPLE_ROWS or chars >= SAMPLE_CHARS:
            break
    return [_column(name, column) for name, column in values.items()], rows


def _column(name: str, values: Sequence[Any]) -> dict[str, Any]:
    known = [value for value in values if value is not None and value != ""]
    strings = [len(value) for value in known if isinstance(value, str)]
    return {
        "column": name,
        "kinds": sorted({_kind(value) for value in known}),
        "missing": len(values) - len(known),
        "distinct": len({str(value) for value in known}),
        "mean_chars": round(sum(strings) / len(strings), 1) if strings else None,
    }


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "float", str: "string", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)


def _text(columns: Sequence[dict[str, Any]]) -> str:
    """Return the text column: by its name, otherwise the column with the longest strings."""
    strings = [column for column in columns if column["kinds"] == ["string"]]
    named = {column["column"].lower(): column["column"] for column in strings}
    for name in TEXT_NAMES:
        if name in named:
            return str(named[name])
    longest = max(strings, key=lambda column: column["mean_chars"] or 0.0, default=None)
    return str(longest["column"]) if longest else "text"  # reported as missing later


def _label(columns: Sequence[dict[str, Any]], text: Sequence[str], rows: int) -> str | None:
    """Return the label column: by its name, otherwise the one with the fewest distinct, repeated values."""
    left = [column for column in columns if column["column"] not in text and column["kinds"]]
    named = {column["column"].lower(): column["column"] for column in left}
    for name in LABEL_NAMES:
        if name in named:
            return str(named[name])
    few = [column for column in left if 1 < column["distinct"] <= max(2, rows // 10) and "float" not in column["kinds"]]
    return str(min(few, key=lambda column: column["distinct"])["column"]) if few else None


def _rows(sources: Sequence[Source], text: Sequence[str], label: str | None) -> dict[str, Any]:
    hashes, codes, lengths, locations = list[Any](), list[int](), list[int](), list[tuple[int, int]]()
    numbers: dict[str, int] = {}
    bad: list[records.Reject] = []
    reasons: Counter[str] = Counter()
    kinds: set[str] = set()
    all_rows_read = True
    for number, source in enumerate(sources):
        if len(lengths) >= MAX_ROWS:
            all_rows_read = False
            break
        for rows, rejects in records.read_rows(source, text, label):
            for reject in rejects:
                reasons[reject.reason] += 1
            bad += rejects[: max(0, MAX_SHOWN - len(bad))]
            hashes.append(shards.text_hashes(rows.texts))
            codes += [numbers.setdefault(name, len(numbers)) for name in rows.labels]
            lengths += [sum(len(WORD.findall(text)) for text in row) for row in rows.texts]
            locations += [(number, row) for row in rows.rows]
            kinds |= rows.label_kinds
            if len(lengths) >= MAX_ROWS:
                all_rows_read = False
                break
    keys = np.concatenate([*hashes, np.empty(0, np.uint64)])
    counts = Counter(codes)
    names = {code: name for name, code in numbers.items()}
    by_label = sorted(((names[code], count) for code, count in counts.items()), key=lambda item: -item[1])
    result: dict[str, Any] = {
        "rows": len(lengths),
        "all_rows_read": all_rows_read,
        "bad_rows": sum(reasons.values()),
        "bad_reasons": [{"reason": reason, "rows": count} for reason, count in reasons.most_common(MAX_SHOWN)],
        "bad_examples": [reject._asdict() for reject in bad[:5]],
        "duplicates": len(keys) - len(np.unique(keys)),
        "words": _percentiles(lengths),
    }
    if label is not None:
        result |= {
            "label_kinds": sorted(kinds),
            "labels": len(by_label),
            "warnings": label_warnings(numbers, kinds),
            "label_rows": [{"label": name, "rows": count} for name, count in by_label],
            **_conflicts(sources, keys, np.asarray(codes, np.int64), locations, names),
        }
    return result


def _percentiles(lengths: Sequence[int]) -> dict[str, int]:
    if not lengths:
        return {}
    shares = {"shortest": 0, "median": 50, "p90": 90, "p99": 99, "longest": 100}
    return {name: int(np.percentile(lengths, share, method="higher")) for name, share in shares.items()}


def _conflicts(
    sources: Sequence[Source], keys: Any, codes: Any, locations: Sequence[tuple[int, int]], names: dict[int, str]
) -> dict[str, Any]:
    """Count the texts that occur with more than one label, and locate the first few."""
    _, text_ids = np.unique(keys, return_inverse=True)
    pairs = np.unique(np.stack([text_ids, codes]), axis=1)
    texts, label_counts = np.unique(pairs[0], return_counts=True)
    conflicting = texts[label_counts > 1]
    examples = []
    for text in conflicting[:5]:
        for i in np.flatnonzero(text_ids == text)[:4].tolist():
            source, row = locations[i]
            examples.append({"file": sources[source].path, "row": row, "label": names[int(codes[i])]})
    return {"conflicting_texts": len(conflicting), "conflict_examples": examples}


def suggested(path: str, sources: Sequence[Source], found: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a run file that fits the audited data."""
    data: dict[str, Any] = {**_splits(path, sources)}
    if found["text"] != ["text"]:
        data["text"] = found["text"]
    if found["label"] not in (None, "label"):
        data["label"] = found["label"]
    if found["bad_rows"]:
        data["on_bad_row"] = "skip"
    keys: dict[str, Any] = {"data": data}
    if found["words"]:
        # A byte-pair vocabulary splits some words. The limit of 512 keeps attention affordable.
        tokens = math.ceil(found["words"]["p99"] * 1.3 / 32) * 32
        keys["tokenizer"] = {"max_length": int(min(512, max(32, tokens)))}
    rows = [label["rows"] for label in found.get("label_rows", [])]
    train: dict[str, Any] = {}
    if len(rows) > 1 and rows[0] > IMBALANCE * rows[-1]:
        train["monitor"] = "valid_f1_macro"
    if found["rows"] < 2_000:
        train["batch_size"] = 16
    return {**keys, **({"train": train} if train else {})}


def _splits(path: str, sources: Sequence[Source]) -> dict[str, Any]:
    """Return the files of each split, as their names suggest; everything is training data if the names do not tell."""
    if any(source.format == "text" for source in sources):
        return {"train": path}
    found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for source in sources:
        stem = os.path.basename(source.path).split(".")[0].lower()
        split = next((name for name, pattern in SPLITS.items() if re.search(pattern, stem)), "train")
        found[split].append(source.path)
    if not found["train"]:
        return {"train": path}
    return {name: files[0] if len(files) == 1 else files for name, files in found.items() if files}
