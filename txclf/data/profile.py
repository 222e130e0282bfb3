"""What raw files hold, without training or preparing: columns, labels, lengths, doubles, conflicts, bad rows.

    first rows of all columns ─▶ which column is the text, which the label
    all rows of those two     ─▶ the audit, in 20 bytes a row

Nothing here decides anything: `txclf prepare` reads the files anew, as the run file says.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from txclf.data import records, shards
from txclf.data.sources import Source

SAMPLE_ROWS = 10_000
"""Rows that the columns are known by."""
MOST_ROWS = 2_000_000
"""Rows that are audited."""
SHOWN = 20
TEXT_NAMES = ("text", "sentence", "content", "body", "review", "question", "message", "comment", "document", "source")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "intent", "sentiment", "topic", "tag", "y")
SPLITS = {"valid": r"(^|[^a-z])(valid|validation|val|dev)([^a-z]|$)", "test": r"(^|[^a-z])(test|eval)([^a-z]|$)"}
RARE_ROWS = 20
LOPSIDED = 10.0
"""Times that the commonest label has more rows than the rarest above which classes count as unequal."""
WORD = re.compile(r"\w+|[^\w\s]")


def audit(path: str, sources: Sequence[Source], text: Sequence[str], label: str | None) -> dict[str, Any]:
    """The audit of files; `text` and `label` name the columns where the guess is not wanted.

    Raises `DataError` for files that cannot be read, and for columns that are not there.
    """
    columns, rows = _columns(sources)
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
        found["note"] = f"`{label_column}` holds lists: several labels of a text, which the audit does not count"
    found |= _rows(sources, text_columns, None if listed else label_column)
    task = {"task": "multilabel"} if listed else {}
    return {**found, "suggested": {**task, **suggested(path, sources, found)}}


def columns_of(columns: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """A column by its name; empty when it is none of them."""
    return next((column for column in columns if column["column"] == name), {})


def _columns(sources: Sequence[Source]) -> tuple[list[dict[str, Any]], int]:
    """What the first rows say of each column, and how many they were."""
    values: dict[str, list[Any]] = {}
    rows = 0
    for source in sources:
        for batch in islice(records.read_raw(source), -(-SAMPLE_ROWS // 2048)):
            for name, column in batch.columns.items():
                values.setdefault(name, [None] * rows).extend(column)
            rows += len(batch.rows)
            for column in values.values():
                column.extend([None] * (rows - len(column)))
        if rows >= SAMPLE_ROWS:
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
    """By its name, else the column of the longest strings."""
    strings = [column for column in columns if column["kinds"] == ["string"]]
    named = {column["column"].lower(): column["column"] for column in strings}
    for name in TEXT_NAMES:
        if name in named:
            return str(named[name])
    longest = max(strings, key=lambda column: column["mean_chars"] or 0.0, default=None)
    return str(longest["column"]) if longest else "text"  # which then is told to be missing


def _label(columns: Sequence[dict[str, Any]], text: Sequence[str], rows: int) -> str | None:
    """By its name, else the column with the fewest values, where they come again and again."""
    left = [column for column in columns if column["column"] not in text and column["kinds"]]
    named = {column["column"].lower(): column["column"] for column in left}
    for name in LABEL_NAMES:
        if name in named:
            return str(named[name])
    few = [column for column in left if 1 < column["distinct"] <= max(2, rows // 10) and "float" not in column["kinds"]]
    return str(min(few, key=lambda column: column["distinct"])["column"]) if few else None


def _rows(sources: Sequence[Source], text: Sequence[str], label: str | None) -> dict[str, Any]:
    hashes, codes, lengths, places = list[Any](), list[int](), list[int](), list[tuple[int, int]]()
    numbers: dict[str, int] = {}
    bad: list[records.Reject] = []
    reasons: Counter[str] = Counter()
    kinds: set[str] = set()
    whole = True
    for number, source in enumerate(sources):
        if len(lengths) >= MOST_ROWS:
            whole = False
            break
        for rows, rejects in records.read_rows(source, text, label):
            for reject in rejects:
                reasons[reject.reason] += 1
            bad += rejects[: max(0, SHOWN - len(bad))]
            hashes.append(shards.text_hashes(rows.texts))
            codes += [numbers.setdefault(one, len(numbers)) for one in rows.labels]
            lengths += [sum(len(WORD.findall(part)) for part in row) for row in rows.texts]
            places += [(number, row) for row in rows.rows]
            kinds |= rows.label_kinds
            if len(lengths) >= MOST_ROWS:
                whole = False
                break
    keys = np.concatenate([*hashes, np.empty(0, np.uint64)])
    counts = Counter(codes)
    names = {code: name for name, code in numbers.items()}
    by_label = sorted(((names[code], count) for code, count in counts.items()), key=lambda one: -one[1])
    result: dict[str, Any] = {
        "rows": len(lengths),
        "all_rows_read": whole,
        "bad_rows": sum(reasons.values()),
        "bad_reasons": [{"reason": reason, "rows": count} for reason, count in reasons.most_common(SHOWN)],
        "bad_examples": [{"file": one.file, "row": one.row, "reason": one.reason} for one in bad[:5]],
        "duplicates": len(keys) - len(np.unique(keys)),
        "words": _percentiles(lengths),
    }
    if label is not None:
        result |= {
            "label_kinds": sorted(kinds),
            "labels": len(by_label),
            "label_rows": [{"label": name, "rows": count} for name, count in by_label],
            **_conflicts(sources, keys, np.asarray(codes, np.int64), places, names),
        }
    return result


def _percentiles(lengths: Sequence[int]) -> dict[str, int]:
    if not lengths:
        return {}
    shares = {"shortest": 0, "median": 50, "p90": 90, "p99": 99, "longest": 100}
    return {name: int(np.percentile(lengths, share, method="higher")) for name, share in shares.items()}


def _conflicts(
    sources: Sequence[Source], keys: Any, codes: Any, places: Sequence[tuple[int, int]], names: dict[int, str]
) -> dict[str, Any]:
    """Texts that stand under more than one label, and where the first few of them are."""
    _, which = np.unique(keys, return_inverse=True)
    pairs = np.unique(np.stack([which, codes]), axis=1)
    texts, labels = np.unique(pairs[0], return_counts=True)
    several = texts[labels > 1]
    examples = []
    for text in several[:5]:
        for row in np.flatnonzero(which == text)[:4].tolist():
            source, place = places[row]
            examples.append({"file": sources[source].path, "row": place, "label": names[int(codes[row])]})
    return {"conflicting_texts": len(several), "conflict_examples": examples}


def suggested(path: str, sources: Sequence[Source], found: dict[str, Any]) -> dict[str, Any]:
    """Keys of a run file for these data, each with a reason to be there."""
    data: dict[str, Any] = {**_splits(path, sources)}
    if found["text"] != ["text"]:
        data["text"] = found["text"]
    if found["label"] not in (None, "label"):
        data["label"] = found["label"]
    if found["bad_rows"]:
        data["on_bad_row"] = "skip"
    keys: dict[str, Any] = {"data": data}
    if found["words"]:
        # A byte-pair vocabulary cuts some words in two; a multiple of 32, not more than the usual limit of attention.
        wanted = math.ceil(found["words"]["p99"] * 1.3 / 32) * 32
        keys["tokenizer"] = {"max_length": int(min(512, max(32, wanted)))}
    rows = [one["rows"] for one in found.get("label_rows", [])]
    train: dict[str, Any] = {}
    if len(rows) > 1 and rows[0] > LOPSIDED * rows[-1]:
        train["monitor"] = "valid_f1_macro"
    if found["rows"] < 2_000:
        train["batch_size"] = 16
    return {**keys, **({"train": train} if train else {})}


def _splits(path: str, sources: Sequence[Source]) -> dict[str, Any]:
    """Files by what their names say they are: of a folder those in it, of a file those beside it that say so."""
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
