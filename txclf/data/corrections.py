"""Corrected labels of `data.corrections`: rows of the raw files that `prepare` relabels or drops.

A row is known by the hash of its text and its labels, so it may move within its file and to another one. A file of
`txclf audit` has this key as a column, which survives a spreadsheet that changes texts; without the column it follows
from the text and the label. Several files are applied one after another, each to the labels that the former gave.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import DataError
from txclf.core.hashing import UInt64s
from txclf.core.text import listed, nearest, shown
from txclf.data import detect, records, shards
from txclf.data import labels as cells
from txclf.data.sources import Source, find_sources

KEY, CORRECTED = "key", "corrected"
"""Columns of a file of corrections."""
DROP, NO_LABEL = "[drop]", "[none]"
"""Values of `corrected` that leave a row out, and that take all labels from a row of `task: multilabel`."""
KEY_PREFIX = "row-"
"""Beginning of a key, so that no spreadsheet takes it for a number."""


@dataclass(frozen=True)
class Correction:
    """Corrected row."""

    number: int
    """Position among the corrections of all files, from 0."""
    place: str
    """File and row of the correction."""
    labels: tuple[str, ...] | None
    """New labels, sorted; None drops the row."""


Corrections = tuple[Mapping[int, Correction], ...]
"""Corrections of each file by the key of their row."""


def keys(texts: Sequence[str], labels: Sequence[tuple[str, ...]]) -> UInt64s:
    """Return the key of each row: a hash of its text, columns joined by newlines, and its sorted labels."""
    return shards.text_hashes((text, *row) for text, row in zip(texts, labels, strict=True))


def key_text(key: int) -> str:
    """Return a key as a cell of a file."""
    return f"{KEY_PREFIX}{key:016x}"


def sources(paths: Sequence[str]) -> list[Source]:
    """Return files of corrections, in the encoding and with the delimiter that a spreadsheet gave them."""
    found = []
    for source in (each for path in paths for each in find_sources([path], "utf-8", None)):
        found += find_sources([source.path], *detect.of_files([source]))
    return found


def is_filled_in(path: str) -> bool:
    """Return False if a file of corrections has none yet; True for any other file. Raises `DataError` as reading it."""
    batches = [batch.columns for source in sources([path]) for batch in records.read_raw(source)]
    return any(CORRECTED not in columns or any(map(_is_filled, columns[CORRECTED])) for columns in batches)


def _is_filled(cell: Any) -> bool:
    return cell is not None and bool(str(cell).strip())


def digests(files: Sequence[Source]) -> list[str]:
    """Return the SHA-256 of each file."""
    return [hashlib.sha256(storage.read_bytes(source.path)).hexdigest() for source in files]


def load(run: RunConfig, files: Sequence[Source]) -> Corrections:
    """Read files of corrections. A row with a blank `corrected` is none.

    Raises `DataError` for a file without a correction or without the columns, and for two corrections of one row that
    differ.
    """
    numbers = 0
    loaded = []
    for source in files:
        found: dict[int, Correction] = {}
        for place, key, labels in _rows(run, source):
            known = found.setdefault(key, Correction(numbers + len(found), place, labels))
            if known.labels != labels:
                raise DataError(f"{place}: corrects the same text otherwise than {known.place}. Correct both alike.")
        if not found:
            raise DataError(
                f"`{source.path}`: no row has a value in column `{CORRECTED}`. Fill in the right label where the given "
                f"one is wrong, or {DROP} to leave the row out."
            )
        numbers += len(found)
        loaded.append(found)
    return tuple(loaded)


def _rows(run: RunConfig, source: Source) -> Iterator[tuple[str, int, tuple[str, ...] | None]]:
    """Yield the place, the key and the corrected labels of each filled-in row of a file."""
    where = f"`{source.path}`"
    for batch in records.read_raw(source):
        columns = batch.columns
        by_text = [*run.data.text, run.data.label]
        if any(name not in columns for name in by_text):
            by_text = ["text", "label"]
        needed = [CORRECTED, *([KEY] if KEY in columns else by_text)]
        if missing := [name for name in needed if name not in columns]:
            raise DataError(
                f"{where}: no column `{shown(missing[0])}` among {listed(list(columns))}. Name a file that `txclf "
                f"audit` wrote, or one with the text, the label and a column `{CORRECTED}`."
            )
        for i, problem in batch.problems.items():
            raise DataError(f"{where}: row {batch.rows[i]:,}: {problem}. Fix the row.")
        filled = [i for i, cell in enumerate(columns[CORRECTED]) if _is_filled(cell)]
        values = [columns[CORRECTED][i] for i in filled]
        corrected = _labels(run, source, values, [batch.rows[i] for i in filled], CORRECTED)
        if KEY in columns:
            found = [_key(columns[KEY][i], f"{where}: row {batch.rows[i]:,}") for i in filled]
        else:
            texts = ["\n".join(str(columns[name][i] or "") for name in by_text[:-1]) for i in filled]
            given = [columns[by_text[-1]][i] for i in filled]
            labels = _labels(run, source, given, [batch.rows[i] for i in filled], by_text[-1])
            found = keys(texts, [row or () for row in labels]).tolist()
        for i, key, labels_of_row in zip(filled, found, corrected, strict=True):
            yield f"{where}: row {batch.rows[i]:,}", key, labels_of_row


def _key(value: Any, where: str) -> int:
    digits = str(value).strip().removeprefix(KEY_PREFIX)
    try:
        return int(digits, 16)
    except ValueError:
        raise DataError(f"{where}: `{shown(value)}` is no key of a row. Keep the column `{KEY}` as it was.") from None


def _labels(
    run: RunConfig, source: Source, values: Sequence[Any], rows: Sequence[int], column: str
) -> list[tuple[str, ...] | None]:
    """Return the labels of cells, None for `DROP`."""
    reasons: dict[int, str] = {}
    is_multilabel = run.task_spec.is_multilabel
    marks = [value.strip() if isinstance(value, str) else "" for value in values]
    found: list[tuple[str, ...]]
    if is_multilabel:
        plain = ["" if mark in (NO_LABEL, DROP) else value for mark, value in zip(marks, values, strict=True)]
        found = cells.label_sets(plain, column, run.data.label_delimiter, set(), reasons)
    else:
        found = [(label,) for label in cells.single(list(values), column, set(), reasons)]
    for i, reason in reasons.items():
        raise DataError(f"`{source.path}`: row {rows[i]:,}: {reason}. Fix the row.")
    return [None if mark == DROP or DROP in labels else labels for mark, labels in zip(marks, found, strict=True)]


def require_known(corrections: Corrections, known: Collection[str]) -> None:
    """Raise `DataError` for a corrected label that no training row has."""
    for correction in (each for found in corrections for each in found.values()):
        for label in correction.labels or ():
            if label not in known:
                raise DataError(
                    f"{correction.place}: no training row has the label `{shown(label)}`. {nearest(label, known)}"
                    f"Correct to a label of the training files, or write {DROP} to leave the row out."
                )


def apply(corrections: Corrections, rows: records.Rows) -> tuple[records.Rows, Counter[int]]:
    """Return rows with corrected labels, without the dropped ones, and the number of rows of each correction."""
    applied: Counter[int] = Counter()
    if not corrections:
        return rows, applied
    labels: list[tuple[str, ...] | None] = [*(rows.label_sets or [(label,) for label in rows.labels])]
    texts = ["\n".join(text) for text in rows.texts]
    for found in corrections:
        for i, key in enumerate(keys(texts, [row or () for row in labels]).tolist()):
            if labels[i] is not None and key in found:
                labels[i] = found[key].labels
                applied[found[key].number] += 1
    if not applied:
        return rows, applied
    kept = [i for i, row in enumerate(labels) if row is not None]
    new = [row for row in labels if row is not None]
    return replace(
        rows,
        texts=[rows.texts[i] for i in kept],
        labels=[row[0] for row in new] if rows.labels else [],
        label_sets=new if rows.label_sets else [],
        rows=[rows.rows[i] for i in kept],
        files=[rows.files[i] for i in kept],
    ), applied


def counted(corrections: Corrections, applied: Mapping[int, int]) -> shards.Corrected | None:
    """Return the counts of the manifest, by the rows of each correction; None without corrections."""
    every = [each for found in corrections for each in found.values()]
    dropped = sum(applied.get(each.number, 0) for each in every if each.labels is None)
    return shards.Corrected(rows=sum(applied.values()), dropped=dropped) if corrections else None


def unmatched(corrections: Corrections, applied: Mapping[int, int]) -> list[str]:
    """Return a warning about corrections that no row matches. Raises `DataError` if a file has no other ones."""
    warnings = []
    for found in corrections:
        missing = [each.place for each in found.values() if not applied.get(each.number)]
        if len(missing) == len(found):
            raise DataError(
                f"`data.corrections`: no row has the text and label of any correction, such as {missing[0]}. Name the "
                "corrections of these data, or remove the key if the files are corrected already."
            )
        if missing:
            warnings.append(
                f"`data.corrections`: {len(missing):,} of {len(found):,} corrections match no row, because text or "
                f"label differ: {listed(missing, mark='')}"
            )
    return warnings
