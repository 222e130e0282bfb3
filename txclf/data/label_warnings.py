"""Warnings about labels that are probably not what their author meant."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from txclf.core.text import MAX_VALUES, listed, shown

MANY_ROWS = 10
"""Training rows from which on a class should have validation rows."""


def label_warnings(labels: Collection[str], kinds: Collection[str]) -> list[str]:
    """Return warnings about labels that look the same, and about booleans among labels of other types.

    `kinds` are the types of the labels in the files, as in `records.Rows`.
    """
    warnings = [_similar(group) for group in similar_labels(labels)]
    whole = [label for label in labels if re.fullmatch(r"-?[0-9]+\.0+", label) and label.split(".")[0] in labels]
    warnings += [
        f"`{label.split('.')[0]}` and `{label}`: different classes, because they differ as texts. pandas writes "
        "integers next to gaps as `1.0`. Write them alike if they are one class."
        for label in sorted(whole)
    ]
    words = sorted({"true", "false"} & set(labels))
    if "boolean" in kinds and len(set(kinds)) > 1:
        warnings.append(
            f"{listed(words)}: booleans among labels of other types. YAML reads unquoted words such as no, off and yes "
            "as booleans, so a label may have lost its name. Write the labels as strings."
        )
    return _first(warnings)


def split_warnings(counts_by_split: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return warnings about classes without a row for training, or with many of them and none for validation."""
    missing = [label for label, rows in counts_by_split["train"].items() if not rows]
    held_out = {label: sum(counts[label] for counts in counts_by_split.values()) for label in missing}
    valid = counts_by_split.get("valid", {})
    unseen = [
        label for label, rows in counts_by_split["train"].items() if rows >= MANY_ROWS and not valid.get(label, 1)
    ]
    return _first(
        f"`{shown(label)}`: no validation row, but {counts_by_split['train'][label]:,} for training. The best "
        "checkpoint and the probabilities do not depend on this class. Raise `data.valid_fraction`, change `seed`, or "
        "name files with it in `data.valid`."
        for label in unseen
    ) + _first(
        f"`{shown(label)}`: no training row. The {rows:,} row(s) of this class are held out, so the model cannot learn "
        "it. Add rows, or name validation files with `data.valid`."
        for label, rows in held_out.items()
    )


def similar_labels(labels: Iterable[str]) -> list[list[str]]:
    """Return the groups of labels that differ only in case, whitespace, invisible characters or Unicode form."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[_essence(label)].append(label)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def _essence(label: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    is_hidden = ("Cf", "Cc", "Cn", "Co")
    words = "".join(c if c.isspace() or unicodedata.category(c) not in is_hidden else "" for c in folded).split()
    return " ".join(words).replace("\ufe0e", "").replace("\ufe0f", "") or label


def _similar(group: list[str]) -> str:
    if len({label.casefold() for label in group}) == 1:
        names, what = listed(group), "case"
    else:
        escaped = [label.encode("unicode_escape").decode("ascii") for label in group]
        names, what = listed(escaped), "case, whitespace, invisible characters or Unicode form"
    return f"{names}: labels that differ only in {what} are different classes. Write them alike if they are one class."


def _first(warnings: Iterable[str]) -> list[str]:
    found = list(warnings)
    more = len(found) - MAX_VALUES
    return [*found[:MAX_VALUES], *([f"{more:,} more warnings of this kind"] if more > 0 else [])]
