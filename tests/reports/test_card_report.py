"""Model cards: their figures are those of the run; the license and the notes of the user are kept."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.reports import LABELS, copied_run, hostile_run
from txclf import Classifier
from txclf.artifacts import run_folder
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.evaluation import evaluate
from txclf.inference import bundle, model_card
from txclf.reports import card_report, report, run_report
from txclf.reports.content import LabelRows
from txclf.reports.error_analysis import QUICK


@pytest.fixture
def folder(run: RunConfig, tmp_path: Path) -> str:
    return copied_run(run, tmp_path)


def card_of(folder: str) -> str:
    return Path(folder, "model", bundle.CARD).read_text()


def test_card_trained_run_has_one_before_any_report(tmp_path: Path) -> None:
    text = card_of(hostile_run(tmp_path).run_folder)
    assert text.startswith("---\nlicense: unknown  # set the license of the model\nlibrary_name: txclf\n")
    assert "# hostile" in text
    assert text.endswith(model_card.MARK + "\n" + model_card.NOTES)


def test_write_evaluated_run_has_its_scores_data_and_limits(folder: str) -> None:
    found = evaluate.evaluate(folder)
    report.report([folder])
    text = card_of(folder)
    for part in ("## Scores", "## Classes, worst first (test)", "## Data", "## Limits", "## Training"):
        assert part in text
    assert f"| accuracy | {found['accuracy']:.4f} |" in text
    assert f"| accuracy of the n-gram linear model | {found['baseline']['accuracy']:.4f} |" in text
    scores = found["per_class"]["plain"]
    row = f"| plain | {scores['precision']:.4f} | {scores['recall']:.4f} | {scores['f1']:.4f} | {scores['support']:,} |"
    assert row in text
    # The test file is the training file here.
    overlap = re.search(r"- ([\d,]+) test rows also occur in the training split", text)
    assert overlap
    assert int(overlap[1].replace(",", "")) > 100
    assert "| train.batch_size | 16 |" in text
    counts = re.findall(r"^\| plain \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert counts
    assert int(counts[0][0]) + int(counts[0][1]) == int(counts[0][2])


def test_write_existing_card_keeps_license_and_notes(tmp_path: Path) -> None:
    folder = hostile_run(tmp_path).run_folder
    path = Path(folder, "model", bundle.CARD)
    mine = (
        path.read_text()
        .replace("unknown  # set the license of the model", "cc-by-4.0")
        .replace("Intended use", "Mine. It is")
    )
    path.write_text(mine)
    report.report([folder])
    text = path.read_text()
    assert "## Classes, worst first (validation)" in text
    assert "license: cc-by-4.0\n" in text
    assert text.endswith(mine[mine.index(model_card.MARK) :])
    report.report([folder])
    assert path.read_text() == text


def test_kept_parts_any_card_returns_license_and_notes(tmp_path: Path) -> None:
    path = str(tmp_path / "README.md")
    assert model_card.kept_parts(path) == (model_card.UNKNOWN_LICENSE, model_card.NOTES)
    for text, license_ in (
        ("---\r\nlicense: mit\r\ntags: [x]\r\n---\r\n# x", "mit"),
        ("# no head\nlicense: mit\n", model_card.UNKNOWN_LICENSE),
        ("---\nlicense:\n---\n", model_card.UNKNOWN_LICENSE),
        ("---\nname: x\n", model_card.UNKNOWN_LICENSE),
    ):
        storage.write_bytes(path, text.encode())
        assert model_card.kept_parts(path) == (license_, model_card.NOTES)


def test_write_labels_with_markup_are_escaped(folder: str) -> None:
    report.report([folder])
    tables = [line for line in card_of(folder).splitlines() if line.startswith("|")]
    assert not any("<" in line for line in tables)
    assert sum(model_card.cell(LABELS[0]) in line for line in tables) >= 2
    assert model_card.cell("a|b\n`c` [d](e) <i>&\\") == "a\\|b \\`c\\` \\[d](e) &lt;i>&amp;\\\\"


def test_damaged_card_bundle_loads_and_the_next_report_rewrites_it(folder: str) -> None:
    model = storage.join(folder, "model")
    expected = Classifier.load(model)(["word1"])
    Path(model, bundle.CARD).write_bytes(b"\xff\xfe")
    assert Classifier.load(model)(["word1"]) == expected
    report.report([folder])
    assert "# hostile" in card_of(folder)


def test_write_weak_model_names_its_limits(run: RunConfig, folder: str) -> None:
    page = run_report.gather(run_folder.read_run(run.run_folder), QUICK)
    (split,) = page.label_splits
    poor = {"precision": 0.1, "recall": 0.1, "f1": 0.1, "support": 9}
    assert page.headline
    assert page.data
    weak = replace(
        page,
        headline=replace(page.headline, beats_baseline=False),
        splits=[replace(split, per_class={**split.per_class, "plain": poor})],
        data=replace(page.data, labels=[LabelRows("plain", {"train": 3, "valid": 1, "test": 9})]),
    )
    card_report.write(storage.join(folder, "model"), weak)
    limits = card_of(folder).split("## Limits")[1].split("## Training")[0]
    assert "The model assigns one of its labels to every text, even if none fits." in limits
    assert "Classes with fewer than 20 training rows: plain." in limits
    assert re.search(r"Classes with an F1 below 0\.5: .*plain", limits)
    assert "The model is not better than an n-gram linear model on the same rows." in limits


def test_write_many_classes_lists_the_worst(run: RunConfig, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_report, "MAX_CLASSES", 2)
    page = run_report.gather(run_folder.read_run(run.run_folder), QUICK)
    card_report.write(storage.join(folder, "model"), page)
    classes = card_of(folder).split("## Classes, worst first")[1].split("## Data")[0]
    rows = [line for line in classes.splitlines() if line.startswith("| ")][2:]
    f1 = [float(row.split(" | ")[3]) for row in rows]
    assert len(f1) == 2
    assert f1 == sorted(f1)
    assert "1 more with a higher F1." in classes
