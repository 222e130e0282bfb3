"""The model card of a run, from what its report gathered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from txclf.core import storage
from txclf.inference import bundle, model_card
from txclf.inference.metadata import BundleMetadata, summary
from txclf.reports.html import number, share

CLASSES = 200
"""Most classes in a table."""
FEW_ROWS = 20
"""Training rows below which a class is named among the limits."""
POOR_F1 = 0.5
NAMED = 10
"""Classes that a limit names."""


def write(folder: str, content: Mapping[str, Any]) -> None:
    """Makes `card.md` of a bundle anew from the content of its run's page."""
    description = bundle.read_metadata(folder)
    parts = [
        summary(content["name"], description),
        _scores(content["splits"]),
        _classes(content["splits"]),
        _data(content["data"]),
        _limits(description, content),
        _settings(content),
    ]
    path = storage.join(folder, bundle.CARD)
    model_card.write(path, description.task, "\n\n".join(part.strip() for part in parts if part))


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [" | ".join(columns), " | ".join(["---", *["---:"] * (len(columns) - 1)])]
    lines += [" | ".join(model_card.cell(value) for value in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _scores(splits: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for split in splits:
        known = split["named"] if "named" in split else split["metrics"]
        rows = [[title, number(value)] for title, value in known]
        names = {"baseline": "n-gram logistic regression", "majority": "majority class"}
        for key, scores in split.get("compared", {}).items():
            named = {"accuracy": "accuracy", "f1_macro": "macro F1"}
            rows += [[f"{named[name]} of the {names[key]}", number(scores[name])] for name in named if name in scores]
        of = f" of {split['of']:,}" if split["rows"] < split["of"] else ""
        parts.append(_table([f"{split['title']}: {split['rows']:,}{of} rows", ""], rows))
    return "## Scores\n\n" + "\n\n".join(parts) if parts else ""


def _classes(splits: Sequence[Mapping[str, Any]]) -> str:
    split = next((one for one in splits if "per_class" in one), None)
    if not split:
        return ""
    found = sorted(split["per_class"].items(), key=lambda item: item[1]["f1"])
    rows = [
        [label, *(number(one[key]) for key in ("precision", "recall", "f1")), f"{one['support']:,}"]
        for label, one in found[:CLASSES]
    ]
    more = f"\n\n{len(found) - CLASSES:,} more, all better." if len(found) > CLASSES else ""
    title = f"## Classes, worst first ({split['title'].lower()})\n\n"
    return title + _table(["label", "precision", "recall", "F1", "rows"], rows) + more


def _data(data: Mapping[str, Any] | None) -> str:
    if not data:
        return ""
    columns = ["split", "rows", "rejected", "cut to length", "tokens lost", "doubles", "also in train"]
    keys = ["rows", "rejected", "truncated_rows"]
    rows = [
        [
            one["name"],
            *(f"{one[key]:,}" for key in keys),
            share(one["truncated_token_share"]),
            f"{one['duplicates']:,}",
            f"{one['duplicates_of_train']:,}",
        ]
        for one in data["splits"]
    ]
    parts = ["## Data", _table(columns, rows)]
    if data["conflicts"]:
        parts.append(f"{data['conflicts']:,} text(s) stand in the training files under more than one label.")
    if len(data["labels"]) > 1:
        splits = [one["name"] for one in data["splits"]]
        counts = sorted(data["labels"], key=lambda one: -one["train"])[:CLASSES]
        labels = [[one["label"], *(f"{one[name]:,}" for name in splits)] for one in counts]
        parts.append(_table(["label", *(f"{name} rows" for name in splits)], labels))
    return "\n\n".join(parts)


def _limits(description: BundleMetadata, content: Mapping[str, Any]) -> str:
    """What the numbers say of where the model is weak; what they cannot say is for the notes."""
    found = []
    data = content["data"]
    if description.labels and content["task"] == "classify":
        found.append("It gives every text one of its labels, also a text that none of them fits.")
    found.append(f"It reads {description.truncation.describe(description.max_length)} of a text and nothing else.")
    found.append("The scores hold for texts like those of its data; it was not tried on others.")
    if data:
        rare = [one["label"] for one in data["labels"] if 0 < one["train"] < FEW_ROWS]
        if rare and content["task"] != "seq2seq":
            found.append(f"Classes with fewer than {FEW_ROWS} training rows: {_some(rare)}.")
        overlap = sum(one["duplicates_of_train"] for one in data["splits"] if one["name"] == "test")
        if overlap:
            found.append(f"{overlap:,} test rows also stand in the training split, so the test scores flatter it.")
    for split in content["splits"][:1]:
        poor = [label for label, one in split.get("per_class", {}).items() if one["support"] and one["f1"] < POOR_F1]
        if poor:
            found.append(f"Classes with an F1 below {POOR_F1}: {_some(poor)}.")
    headline = content.get("headline")
    if headline and headline.get("beats") is False:
        found.append("It is not better than an n-gram logistic regression on the same rows.")
    if not description.calibration and content["task"] != "seq2seq":
        found.append("Its probabilities are not calibrated: take them as a ranking.")
    return "## Limits\n\n" + "\n".join(f"- {one}" for one in found)


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - NAMED:,} more" if len(labels) > NAMED else ""
    return ", ".join(model_card.cell(label) for label in labels[:NAMED]) + more


def _settings(content: Mapping[str, Any]) -> str:
    rows = [[key, value] for key, value, _ in content["changed"] if key not in ("name", "storage")]
    facts = "\n".join(f"- {name}: {model_card.cell(number(value))}" for name, value in content["facts"])
    seed = "\n".join(f"- {name}: {model_card.cell(value)}" for name, value in content["reproduce"]["facts"])
    parts = ["## How it was made", facts + "\n" + seed]
    if rows:
        parts += ["Settings that are not the defaults:", _table(["key", "value"], rows)]
    return "\n\n".join(parts)
