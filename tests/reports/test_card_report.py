"""Model cards: what they say follows from the run; the license and the notes of the user stay."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.reports import LABELS, hostile_run
from txclf import Classifier
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.evaluation import evaluate
from txclf.inference import bundle, model_card
from txclf.reports import report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return hostile_run(tmp_path_factory.mktemp("card"))


def text_of(run: RunConfig) -> str:
    return Path(run.run_folder, "model", bundle.CARD).read_text()


def test_a_bundle_has_a_card_before_any_report(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    text = text_of(run)
    assert text.startswith("---\nlicense: unknown  # set the license of the model\nlibrary_name: txclf\n")
    assert "# hostile" in text
    assert text.endswith(model_card.MARK + "\n" + model_card.NOTES)


def test_it_says_what_the_run_found(run: RunConfig) -> None:
    found = evaluate.evaluate(run.run_folder)
    report.report([run.run_folder])
    text = text_of(run)
    for part in ("## Scores", "## Classes, worst first (test)", "## Data", "## Limits", "## Training"):
        assert part in text
    assert f"| accuracy | {found['accuracy']:.4f} |" in text
    assert f"| accuracy of the n-gram logistic regression | {found['baseline']['accuracy']:.4f} |" in text
    one = found["per_class"]["plain"]
    row = f"| plain | {one['precision']:.4f} | {one['recall']:.4f} | {one['f1']:.4f} | {one['support']:,} |"
    assert row in text
    # The test file is the training file here.
    overlap = re.search(r"- ([\d,]+) test rows also occur in the training split", text)
    assert overlap
    assert int(overlap[1].replace(",", "")) > 100
    assert "| train.batch_size | 16 |" in text
    counts = re.findall(r"^\| plain \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert counts
    assert int(counts[0][0]) + int(counts[0][1]) == int(counts[0][2])


def test_license_and_notes_of_the_user_stay(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    path = Path(run.run_folder, "model", bundle.CARD)
    mine = (
        path.read_text()
        .replace("unknown  # set the license of the model", "cc-by-4.0")
        .replace("Intended use", "Mine. It is")
    )
    path.write_text(mine)
    report.report([run.run_folder])
    text = path.read_text()
    assert "## Classes, worst first (validation)" in text
    assert "license: cc-by-4.0\n" in text
    assert text.endswith(mine[mine.index(model_card.MARK) :])
    report.report([run.run_folder])
    assert path.read_text() == text


def test_an_own_card_is_read_for_its_license(tmp_path: Path) -> None:
    path = str(tmp_path / "card.md")
    assert model_card.kept_parts(path) == (model_card.UNKNOWN_LICENSE, model_card.NOTES)
    for text, license_ in (
        ("---\r\nlicense: mit\r\ntags: [x]\r\n---\r\n# x", "mit"),
        ("# no head\nlicense: mit\n", model_card.UNKNOWN_LICENSE),
        ("---\nlicense:\n---\n", model_card.UNKNOWN_LICENSE),
        ("---\nname: x\n", model_card.UNKNOWN_LICENSE),
    ):
        storage.write_bytes(path, text.encode())
        assert model_card.kept_parts(path) == (license_, model_card.NOTES)


def test_labels_are_no_markup(run: RunConfig) -> None:
    report.report([run.run_folder])
    tables = [line for line in text_of(run).splitlines() if line.startswith("|")]
    assert not any("<" in line for line in tables)
    assert sum(model_card.cell(LABELS[0]) in line for line in tables) >= 2
    assert model_card.cell("a|b\n`c` [d](e) <i>&\\") == "a\\|b \\`c\\` \\[d](e) &lt;i>&amp;\\\\"


def test_loading_does_not_depend_on_it(run: RunConfig) -> None:
    folder = storage.join(run.run_folder, "model")
    expected = Classifier.load(folder)(["word1"])
    Path(folder, bundle.CARD).write_bytes(b"\xff\xfe")
    assert Classifier.load(folder)(["word1"]) == expected
    report.report([run.run_folder])  # and it can be made again
    assert "# hostile" in text_of(run)
