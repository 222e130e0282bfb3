"""Metadata of a bundle: upgrade from format 1, and the summary of the model card."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.helpers.serving import untrained
from txclf.config.tasks import TASKS
from txclf.core import storage
from txclf.inference import bundle
from txclf.inference.metadata import FORMAT, BundleMetadata, Calibration, Conformal, hub_metadata, summary, upgrade
from txclf.ngrams.blend import NgramShare

SHARE = {
    "analyzer": {"words": 2, "characters": [2, 5], "lowercase": True},
    "weighting": "tfidf",
    "weight": 0.5,
    "temperature": 1.0,
    "network_temperature": 1.5,
    "train_rows": 10,
    "network_loss": 0.5,
    "ngram_loss": 0.5,
    "loss": 0.4,
}
FORMAT_1 = Path(__file__).parent / "bundle_format_1" / bundle.METADATA


def test_upgrade_format_1_renames_its_keys() -> None:
    content = storage.read_json(FORMAT_1)
    assert content["format"] == 1
    upgraded = upgrade(content)
    assert upgraded["format"] == FORMAT
    assert upgraded["truncation"]["mode"] == content["cut"]["long"]
    assert upgraded["model"]["hidden_size"] == content["model"]["width"]
    assert "width" not in upgraded["model"]
    BundleMetadata.model_validate(upgraded)
    assert content["format"] == 1  # the argument is not changed


def test_upgrade_format_1_renames_the_beams_of_seq2seq() -> None:
    upgraded = upgrade({"format": 1, "generate": {"beams": 3, "length_penalty": 0.5}})
    assert upgraded["generate"] == {"num_beams": 3, "length_penalty": 0.5}


def test_upgrade_current_format_is_unchanged(tiny_bundle: str) -> None:
    content = storage.read_json(f"{tiny_bundle}/{bundle.METADATA}")
    assert upgrade(content) is content


def test_metadata_unknown_key_is_refused(tiny_bundle: str) -> None:
    content: dict[str, Any] = storage.read_json(f"{tiny_bundle}/{bundle.METADATA}")
    with pytest.raises(ValidationError, match="new"):
        BundleMetadata.model_validate({**content, "new": 1})


def test_task_spec_is_that_of_the_task(tiny_bundle: str) -> None:
    assert bundle.read_metadata(tiny_bundle).task_spec is TASKS["classify"]


def test_metadata_conformal_of_another_task_is_refused(tmp_path: Path) -> None:
    metadata = bundle.read_metadata(untrained(tmp_path, task="multilabel")).model_dump()
    with pytest.raises(ValidationError, match="a model of `task: multilabel` has no `conformal`"):
        BundleMetadata.model_validate({**metadata, "conformal": Conformal(rows=1, quantiles=[0.5])})


def test_as_rows_takes_texts_and_rows_of_text_columns(tmp_path: Path) -> None:
    one = bundle.read_metadata(untrained(tmp_path / "one"))
    two = bundle.read_metadata(untrained(tmp_path / "two", data={"text": ["title", "body"]}))
    assert one.as_rows(["a", ("b",)]) == [("a",), ("b",)]
    assert one.as_rows([]) == []
    assert two.as_rows([("a", "b")]) == [("a", "b")]


def test_as_rows_of_other_columns_raises_type_error(tmp_path: Path) -> None:
    two = bundle.read_metadata(untrained(tmp_path, data={"text": ["title", "body"]}))
    with pytest.raises(TypeError, match=r'^expected a list of texts, as in \["some text"\]$'):
        two.as_rows("ab")
    for row, text in (
        ("ab", r"\('ab',\)"),
        (("a", "b", "c"), r"\('a', 'b', 'c'\)"),
        (("a", 3), r"\('a', 3\)"),
        (3, r"\(3,\)"),
    ):
        with pytest.raises(TypeError, match=rf"^expected 2 text\(s\) per row \(title, body\), not {text}$"):
            two.as_rows([("a", "b"), row])  # type: ignore[list-item]


def test_metadata_windows_without_a_step_are_refused(tiny_bundle: str) -> None:
    content = bundle.read_metadata(tiny_bundle).model_dump()
    content |= {"max_length": 16, "special_tokens": {"prefix": [2], "suffix": [3]}}
    for overlap, is_refused in ((13, False), (14, True), (15, True)):
        content["truncation"] = {"mode": "windows", "window_overlap": overlap, "max_windows": 2}
        with pytest.raises(ValidationError, match="windows that do not fit") if is_refused else nullcontext():
            BundleMetadata.model_validate(content)


def test_of_network_has_no_quantiles_of_the_blend(tiny_bundle: str) -> None:
    sets = Conformal(rows=1, quantiles=[0.5])
    metadata = bundle.read_metadata(tiny_bundle).model_copy(update={"conformal": sets})
    assert metadata.of_network().conformal == metadata.conformal  # without n-grams it is the network already
    share = NgramShare.model_validate(SHARE)
    assert metadata.model_copy(update={"ngrams": share}).of_network().conformal is None


def test_hub_metadata_is_that_of_the_task(tiny_bundle: str, tmp_path: Path) -> None:
    assert hub_metadata("tiny", bundle.read_metadata(tiny_bundle)) == {
        "library_name": "txclf",
        "pipeline_tag": "text-classification",
        "tags": ["txclf"],
    }
    tags = hub_metadata("tags", bundle.read_metadata(untrained(tmp_path, task="multilabel")))["tags"]
    assert tags == ["txclf", "multi-label-classification"]


def test_hub_metadata_name_a_base_model_of_the_hub_only(tiny_bundle: str) -> None:
    metadata = bundle.read_metadata(tiny_bundle)

    def of(**model: str | None) -> dict[str, Any]:
        return hub_metadata("x", metadata.model_copy(update={"model": metadata.model.model_copy(update=model)}))

    hub = of(pretrained="org/name", revision="0" * 40)
    assert (hub["library_name"], hub["base_model"]) == ("transformers", "org/name")
    assert "base_model" not in of(pretrained="/data/name", revision=None)


def test_hub_metadata_have_the_validation_scores(tiny_bundle: str) -> None:
    metrics = {"valid_loss": 1.0, "valid_accuracy": 0.5, "valid_f1_macro": 0.25}
    metadata = bundle.read_metadata(tiny_bundle).model_copy(update={"metrics": metrics})
    (index,) = hub_metadata("x", metadata)["model-index"]
    assert index["results"][0]["metrics"] == [
        {"type": "accuracy", "name": "accuracy", "value": 0.5},
        {"type": "f1", "name": "f1_macro", "value": 0.25},
    ]


def test_summary_names_labels_rows_and_metrics(tiny_bundle: str) -> None:
    metadata = bundle.read_metadata(tiny_bundle)
    text = summary("tiny", metadata)
    for expected in (
        "# tiny",
        "A transformer text classifier (1 layer of size 16, 2 heads)",
        "- **Labels** (3): `low`, `mid`, `high`",
        "- **Rows**: train 1,234, valid 56",
        "- **Probabilities**: not calibrated",
        "| valid_loss | 1.2500 |",
        'model = Classifier.load("this/folder")',
    ):
        assert expected in text
    assert "Thresholds" not in text


def test_summary_reports_the_calibration(tiny_bundle: str) -> None:
    calibration = Calibration(temperature=1.5, error_before=0.2, error_after=0.1, rows=1200)
    metadata = bundle.read_metadata(tiny_bundle).model_copy(update={"calibration": calibration})
    assert "calibrated on 1,200 validation rows: temperature 1.500, calibration error 0.2000 before" in summary(
        "tiny", metadata
    )


def test_summary_of_multilabel_model_has_thresholds(tmp_path: Path) -> None:
    metadata = bundle.read_metadata(untrained(tmp_path, task="multilabel"))
    text = summary("tags", metadata)
    assert "with any number of labels per text" in text
    assert "chosen on the validation rows, from 0.000 to 1.000" in text
    assert "(minimum probability of a predicted label): 0.5" in summary(
        "tags", metadata.model_copy(update={"thresholds": None})
    )


def test_summary_of_seq2seq_model_has_the_target_vocabulary(tmp_path: Path) -> None:
    metadata = bundle.read_metadata(untrained(tmp_path, task="seq2seq", data={"target": "target"}))
    text = summary("pairs", metadata)
    assert "A sequence-to-sequence transformer" in text
    assert f"- **Target vocabulary**: {metadata.target_vocab_size:,} tokens" in text
    assert "Labels" not in text
    assert 'model = Seq2Seq.load("this/folder")' in text
