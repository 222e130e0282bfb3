"""Profile of raw files before preparing: columns, labels, lengths, duplicates, conflicts, bad rows.

    first rows of all columns ─▶ guess the text column and the label column
    all rows of these two     ─▶ the audit, with a hash and some numbers per row in memory, and the distinct labels

The profile changes nothing: `txclf prepare` reads the files itself, with the settings of the run file.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from txclf.config.sections import Tokenizer
from txclf.core import words
from txclf.core.errors import DataError
from txclf.core.text import listed, shown
from txclf.data import detect, raw, records, shards
from txclf.data.label_warnings import label_warnings
from txclf.data.sources import Source, unchanged

SAMPLE_ROWS = 10_000
"""Rows from which the columns are guessed."""
SAMPLE_CHARS = 2**26
"""Characters of these rows after which there are no more of them."""
MAX_ROWS = 2_000_000
"""Maximum number of rows that are audited."""
MAX_SHOWN = 20
MOST = 0.9
"""Share of the values of a text column that are strings."""
TEXT_NAMES = ("text", "sentence", "content", "body", "review", "question", "message", "comment", "document", "source")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "intent", "sentiment", "topic", "tag", "y")
TRAIN = r"(^|[^a-z])(train|training)([^a-z]|$)"
SPLITS = {"valid": r"(^|[^a-z])(valid|validation|val|dev)([^a-z]|$)", "test": r"(^|[^a-z])(test|eval)([^a-z]|$)"}
IMBALANCE = 10.0
"""Ratio of the rows of the commonest and the rarest label above which classes count as imbalanced."""
TOKENS_PER_WORD = 1.3
MAX_NAME_CHARS = 80
"""Characters above which the name of a column looks like a text."""
SCRIPT_ROWS, SCRIPT_CHARS = 2_000, 500
"""Texts, and characters of each, whose script is found."""


def audit(
    path: str, sources: Sequence[Source], text: Sequence[str], label: str | None, like: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the audit of files. `text` and `label` name the columns; without them the columns are guessed.

    The delimiter of the labels is that of another audit, `like`; without one it is guessed.

    Raises `DataError` for files that cannot be read, and for missing columns.
    """
    with unchanged(sources):
        return _audit(path, sources, text, label, like)


def _audit(
    path: str, sources: Sequence[Source], text: Sequence[str], label: str | None, like: Mapping[str, Any] | None
) -> dict[str, Any]:
    columns, values, rows = _columns(sources)
    if not rows:
        raise DataError(f"`{path}`: no row, only empty files or headers. Name files with rows.")
    text_columns = list(text) or [_text(columns, rows)]
    label_column = label or _label(columns, text_columns, rows)
    found: dict[str, Any] = {
        "kind": "data",
        "path": path,
        "files": len(sources),
        "formats": sorted({source.format for source in sources}),
        **_text_format(sources),
        "text": text_columns,
        "label": label_column,
        "columns": columns,
    }
    delimiter = like.get("label_delimiter") if like else _label_delimiter(values.get(label_column or "", []))
    if delimiter:
        found["label_delimiter"] = delimiter
        found["note"] = f"rows have several labels in `{shown(label_column)}`, as `task: multilabel` reads them"
    found |= _rows(sources, text_columns, label_column, delimiter)
    found["warnings"] = [*_column_warnings(values, sources), *found.get("warnings", [])]
    return {**found, "suggested": suggested(path, sources, found)}


def _text_format(sources: Sequence[Source]) -> dict[str, Any]:
    """Return the encoding and the delimiter of the files that have one."""
    encodings = {source.encoding for source in sources if source.format != "parquet"}
    delimiters = {source.delimiter or "," for source in sources if source.format == "csv"}
    return {
        **({"encoding": encodings.pop()} if encodings else {}),
        **({"delimiter": detect.quoted(delimiters.pop())} if delimiters else {}),
    }


def _label_delimiter(values: Sequence[Any]) -> str | None:
    """Return the delimiter between the labels of a cell, a comma for lists; None if cells have single labels.

    Cells have several labels if their parts are fewer than the cells, and most parts are also cells of their own.
    """
    if any(isinstance(value, list) for value in values):
        return ","
    cells = {value.strip() for value in values if isinstance(value, str) and value.strip()}
    for delimiter in ("|", ";", ","):
        joined = [cell for cell in cells if delimiter in cell]
        parts = {part.strip() for cell in cells for part in cell.split(delimiter)}
        if len(joined) > 1 and len(parts) < len(cells) and len(parts & cells) > 0.5 * len(parts):
            return delimiter
    return None


def _column_warnings(values: Mapping[str, Sequence[Any]], sources: Sequence[Source]) -> list[str]:
    """Return warnings about a header that looks like a row, and about labels in columns of their own."""
    warnings = []
    repeated = [name for name, column in values.items() if name in column or len(name) > MAX_NAME_CHARS]
    if repeated and any(source.format in ("csv", "tsv") for source in sources):
        warnings.append(
            f"{listed(repeated)}: a name of the header looks like a value. Add a first line with the names of the "
            "columns if the file has none."
        )
    flags = [
        name for name, column in values.items() if {str(value) for value in column} in ({"0", "1"}, {"0.0", "1.0"})
    ]
    if len(flags) > 1:
        warnings.append(
            f"{listed(flags)}: columns of 0 and 1. If they are labels of the texts, write the names of those with 1 "
            "into one column, as in `a,b`, and set `task: multilabel`."
        )
    return warnings


def _scripts(texts: Iterable[str]) -> dict[str, int]:
    """Return the percentage of the letters in each script, the most frequent first."""
    letters: Counter[str] = Counter()
    for character, count in Counter(chain.from_iterable(texts)).items():
        if character.isalpha():
            name = unicodedata.name(character, "other").split()[0]
            letters["Han" if name == "CJK" else name.title()] += count
    shares = {name: round(100 * count / letters.total()) for name, count in letters.most_common()}
    return {name: share for name, share in shares.items() if share}


def _columns(sources: Sequence[Source]) -> tuple[list[dict[str, Any]], dict[str, list[Any]], int]:
    """Return the facts about each column from the first rows, their values, and the number of these rows."""
    values: dict[str, list[Any]] = {}
    rows = chars = 0
    for source in sources:
        for batch in records.read_raw(source):
            for name, column in batch.columns.items():
                values.setdefault(name, [None] * rows).extend(column)
                chars += sum(map(raw.num_chars, column))
            rows += len(batch.rows)
            for column in values.values():
                column.extend([None] * (rows - len(column)))
            if rows >= SAMPLE_ROWS or chars >= SAMPLE_CHARS:
                break
        if rows >= SAMPLE_ROWS or chars >= SAMPLE_CHARS:
            break
    return [_column(name, column) for name, column in values.items()], values, rows


def _column(name: str, values: Sequence[Any]) -> dict[str, Any]:
    known = [value for value in values if value is not None and value != ""]
    strings = [len(value) for value in known if isinstance(value, str)]
    return {
        "column": name,
        "kinds": sorted({_kind(value) for value in known}),
        "missing": len(values) - len(known),
        "distinct": len({hash(str(value)) for value in known}),
        "strings": len(strings),
        "mean_chars": round(sum(strings) / len(strings), 1) if strings else None,
    }


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "float", str: "string", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)


def _text(columns: Sequence[dict[str, Any]], rows: int) -> str:
    """Return the text column: by its name, otherwise the column with the most characters, of those of strings.

    Some values may be of another type: such rows are bad ones.
    """
    strings = [column for column in columns if column["strings"] > MOST * (rows - column["missing"])]
    named = {column["column"].lower(): column["column"] for column in strings}
    for name in TEXT_NAMES:
        if name in named:
            return str(named[name])
    longest = max(strings, key=lambda column: column["strings"] * (column["mean_chars"] or 0.0), default=None)
    return str(longest["column"]) if longest else "text"  # reported as missing later


def _label(columns: Sequence[dict[str, Any]], text: Sequence[str], rows: int) -> str | None:
    """Return the label column: by its name, otherwise the one with the fewest distinct, repeated values."""
    left = [column for column in columns if column["column"] not in text and column["kinds"]]
    named = {column["column"].lower(): column["column"] for column in left}
    for name in LABEL_NAMES:
        if name in named:
            return str(named[name])
    few = [column for column in left if 1 < column["distinct"] <= max(2, rows // 10) and "float" not in column["kinds"]]
    is_sparse = {column["column"]: column["missing"] > rows / 2 for column in few}
    best = min(few, key=lambda column: (is_sparse[column["column"]], column["distinct"]), default=None)
    return str(best["column"]) if best else None


def _rows(
    sources: Sequence[Source], text: Sequence[str], label: str | None, label_delimiter: str | None
) -> dict[str, Any]:
    hashes, codes, lengths, locations = list[Any](), list[int](), list[int](), list[tuple[int, int]]()
    numbers: dict[tuple[str, ...], int] = {}
    sample: list[str] = []
    bad: list[records.Reject] = []
    reasons: Counter[str] = Counter()
    kinds: set[str] = set()
    all_rows_read = True
    for number, source in enumerate(sources):
        if len(lengths) >= MAX_ROWS:
            all_rows_read = False
            break
        for rows, rejects in records.read_rows(source, text, label, label_delimiter=label_delimiter):
            for reject in rejects:
                reasons[re.sub(r"^line [\d,]+: ", "", reject.reason)] += 1
            bad += rejects[: max(0, MAX_SHOWN - len(bad))]
            hashes.append(shards.text_hashes(rows.texts))
            found = rows.label_sets or [(name,) for name in rows.labels]
            codes += [numbers.setdefault(answer, len(numbers)) for answer in found]
            sample += [cell[:SCRIPT_CHARS] for row in rows.texts[: max(0, SCRIPT_ROWS - len(sample))] for cell in row]
            lengths += [sum(len(words.split(text)) for text in row) for row in rows.texts]
            locations += [(number, row) for row in rows.rows]
            kinds |= rows.label_kinds
            if len(lengths) >= MAX_ROWS:
                all_rows_read = False
                break
    keys = np.concatenate([*hashes, np.empty(0, np.uint64)])
    names = {code: ", ".join(answer) for answer, code in numbers.items()}
    counts: Counter[str] = Counter()
    answers = list(numbers)
    for code, count in Counter(codes).items():
        counts.update(dict.fromkeys(answers[code], count))
    by_label = counts.most_common()
    result: dict[str, Any] = {
        "rows": len(lengths),
        "all_rows_read": all_rows_read,
        "bad_rows": sum(reasons.values()),
        "bad_reasons": [{"reason": reason, "rows": count} for reason, count in reasons.most_common(MAX_SHOWN)],
        "bad_examples": [reject._asdict() for reject in bad[:5]],
        "duplicates": len(keys) - len(np.unique(keys)),
        "words": _percentiles(lengths),
        "script_percent": _scripts(sample),
    }
    if label is not None:
        result |= {
            "label_kinds": sorted(kinds),
            "labels": len(by_label),
            "warnings": label_warnings(counts, kinds),
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
    text_source = next((source for source in sources if source.format != "parquet"), None)
    if text_source and text_source.encoding != "utf-8":
        data["encoding"] = text_source.encoding
    if text_source and text_source.delimiter:
        data["delimiter"] = text_source.delimiter
    if found["text"] != ["text"]:
        data["text"] = found["text"]
    if found["label"] not in (None, "label"):
        data["label"] = found["label"]
    if found.get("label_delimiter", ",") != ",":
        data["label_delimiter"] = found["label_delimiter"]
    if found["bad_rows"]:
        data["on_bad_row"] = "skip"
    keys: dict[str, Any] = {**({"task": "multilabel"} if "label_delimiter" in found else {}), "data": data}
    # A byte-pair vocabulary splits some words. The limit of 512 keeps attention affordable. Other keys follow from the
    # rows, if the run file does not set them: see `config/recipes.py`.
    if found["words"] and found["words"]["p99"] * TOKENS_PER_WORD > Tokenizer().max_length:
        tokens = math.ceil(found["words"]["p99"] * TOKENS_PER_WORD / 32) * 32
        keys["tokenizer"] = {"max_length": min(512, tokens)}
    rows = [label["rows"] for label in found.get("label_rows", [])]
    train: dict[str, Any] = {}
    if len(rows) > 1 and rows[0] > IMBALANCE * rows[-1]:
        train["monitor"] = "valid_f1_macro"
    return {**keys, **({"train": train} if train else {})}


def by_split(files: Sequence[tuple[str, Source]]) -> dict[str, list[Source]]:
    """Return the sources of each split, as their paths suggest: the names of the files, then those of the folders.

    Everything is training data if no path names a training file. The folders that hold all of them do not count.
    """
    found: dict[str, list[Source]] = {"train": [], "valid": [], "test": []}
    paths = [name.lower().rstrip("/").split("/") for name, _ in files]
    shared = 0
    while len({path[shared] for path in paths}) == 1 and all(len(path) > shared + 1 for path in paths):
        shared += 1
    if shared < 2 and any(path[0] == "" for path in paths):  # nothing but the root: folders of other purposes
        shared = -1
    for path, (_, source) in zip(paths, files, strict=True):
        found[_split_of(path[shared:])].append(source)
    return found if found["train"] else {"train": [source for _, source in files], "valid": [], "test": []}


def _split_of(parts: Sequence[str]) -> str:
    for part in reversed(parts):
        if split := next((split for split, pattern in SPLITS.items() if re.search(pattern, part)), None):
            return split
        if re.search(TRAIN, part):
            break
    return "train"


def _splits(path: str, sources: Sequence[Source]) -> dict[str, Any]:
    """Return the files of each split, as their names suggest; everything is training data if the names do not tell."""
    if any(source.format == "text" for source in sources):
        return {"train": path}
    found = by_split([(source.path, source) for source in sources])
    if len(found["train"]) == len(sources):
        return {"train": path}
    names = {split: [source.path for source in files] for split, files in found.items() if files}
    return {split: paths[0] if len(paths) == 1 else paths for split, paths in names.items()}
