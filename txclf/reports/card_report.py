"""Model card of a finished run, written from the content of its report page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from txclf.core import storage
from txclf.core.text import number
from txclf.inference import bundle, model_card
from txclf.inference.metadata import BundleMetadata, hub_metadata, summary
from txclf.reports.content import DataAudit, ExampleSplit, LabelSplit, RunPage
from txclf.reports.formatting import share, titled

MAX_CLASSES = 200
"""Rows of a table of classes."""
FEW_ROWS = 20
"""Training rows below which the limits name a class."""
POOR_F1 = 0.5
"""F1 below which the limits name a class."""
MAX_NAMED = 10
"""Classes that one limit names."""


def write(folder: str, page: RunPage) -> None:
    """Write the model card of a bundle. The license and the notes of an existing card are kept."""
    description = bundle.read_metadata(folder)
    parts = [
        summary(page.name, description),
        _scores(page.splits),
        _classes(page.label_splits),
        _data(page.data) if page.data else "",
        _limits(description, page),
        _settings(page),
    ]
    path = storage.join(folder, bundle.CARD)
    model_card.write(path, hub_metadata(page.name, description), "\n\n".join(part.strip() for part in parts if part))


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; all columns but the first are right-aligned."""
    lines = [" | ".join(columns), " | ".join(["---", *["---:"] * (len(columns) - 1)])]
    lines += [" | ".join(model_card.cell(value) for value in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _scores(splits: Sequence[LabelSplit | ExampleSplit]) -> str:
    """Return the scores of each split, those of the baselines below them."""
    parts = []
    baselines = {"baseline": "n-gram linear model", "majority": "majority class"}
    titles = {"accuracy": "accuracy", "f1_macro": "macro F1"}
    for split in splits:
        rows = [[title, number(value)] for title, value in titled(split.metrics)]
        for key, scores in split.compared.items() if isinstance(split, LabelSplit) else ():
            rows += [
                [f"{titles[name]} of the {baselines[key]}", number(scores[name])] for name in titles if name in scores
            ]
        sampled = isinstance(split, LabelSplit) and split.rows < split.total_rows
        scored = f"{split.rows:,} of {split.total_rows:,}" if sampled else f"{split.total_rows:,}"
        parts.append(_table([f"{split.title}: {scored} rows", ""], rows))
    return "## Scores\n\n" + "\n\n".join(parts) if parts else ""


def _classes(splits: Sequence[LabelSplit]) -> str:
    """Return the classes of the first split, lowest F1 first."""
    if not splits:
        return ""
    split = splits[0]
    classes = sorted(split.per_class.items(), key=lambda item: item[1]["f1"])
    rows = [
        [label, *(number(scores[key]) for key in ("precision", "recall", "f1")), f"{scores['support']:,}"]
        for label, scores in classes[:MAX_CLASSES]
    ]
    more = f"\n\n{len(classes) - MAX_CLASSES:,} more with a higher F1." if len(classes) > MAX_CLASSES else ""
    title = f"## Classes, worst first ({split.title.lower()})\n\n"
    return title + _table(["label", "precision", "recall", "F1", "rows"], rows) + more


def _data(data: DataAudit) -> str:
    """Return the audit of the data and the number of rows by label."""
    columns = ["split", "rows", "rejected", "truncated rows", "tokens lost", "duplicates", "also in train"]
    rows = [
        [
            split.name,
            *(f"{count:,}" for count in (split.rows, split.rejected, split.truncated_rows)),
            share(split.truncated_token_share),
            f"{split.duplicates:,}",
            f"{split.duplicates_of_train:,}",
        ]
        for split in data.splits
    ]
    parts = ["## Data", _table(columns, rows)]
    if data.conflicting_texts:
        parts.append(f"{data.conflicting_texts:,} text(s) occur in the training files under more than one label.")
    if len(data.labels) > 1:
        splits = [split.name for split in data.splits]
        counts = sorted(data.labels, key=lambda label: -label.rows["train"])[:MAX_CLASSES]
        labels = [[label.label, *(f"{label.rows[name]:,}" for name in splits)] for label in counts]
        parts.append(_table(["label", *(f"{name} rows" for name in splits)], labels))
    return "\n\n".join(parts)


def _limits(description: BundleMetadata, page: RunPage) -> str:
    """Return the weaknesses that follow from the numbers. The user's notes hold the others."""
    limits = []
    data, spec = page.data, description.task_spec
    if spec.is_single_label:
        limits.append("The model assigns one of its labels to every text, even if none fits.")
    limits.append(f"The model reads {description.truncation.describe(description.max_length)} of a text.")
    limits.append("The scores hold for texts similar to those of its data. The model was not tested on others.")
    if data:
        rare = [label.label for label in data.labels if 0 < label.rows["train"] < FEW_ROWS]
        if rare and spec.has_labels:
            limits.append(f"Classes with fewer than {FEW_ROWS} training rows: {_some(rare)}.")
        overlap = sum(split.duplicates_of_train for split in data.splits if split.name == "test")
        if overlap:
            limits.append(f"{overlap:,} test rows also occur in the training split, so the test scores are too high.")
    for split in page.label_splits[:1]:
        classes = split.per_class.items()
        poor = [label for label, scores in classes if scores["support"] and scores["f1"] < POOR_F1]
        if poor:
            limits.append(f"Classes with an F1 below {POOR_F1}: {_some(poor)}.")
    if page.headline and page.headline.beats_baseline is False:
        limits.append("The model is not better than an n-gram linear model on the same rows.")
    if not description.calibration and spec.has_labels:
        limits.append("The probabilities are not calibrated. Use them as a ranking only.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _some(labels: Sequence[str]) -> str:
    """Return the first labels and the number of the others."""
    more = f" and {len(labels) - MAX_NAMED:,} more" if len(labels) > MAX_NAMED else ""
    return ", ".join(model_card.cell(label) for label in labels[:MAX_NAMED]) + more


def _settings(page: RunPage) -> str:
    """Return the facts of the run and the settings that are not the defaults."""
    rows = [[setting.key, setting.value] for setting in page.changed if setting.key not in ("name", "storage")]
    facts = [f"- {name}: {model_card.cell(number(value))}" for name, value in page.facts]
    facts += [f"- {name}: {model_card.cell(value)}" for name, value in page.reproduce.facts]
    parts = ["## Training", "\n".join(facts)]
    if rows:
        parts += ["Settings that differ from the defaults:", _table(["key", "value"], rows)]
    return "\n\n".join(parts)
