"""Loading a bundle of any task."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.serving import untrained
from txclf import Classifier, Seq2Seq
from txclf.core.errors import BundleError
from txclf.inference.load import load_model


def test_load_model_returns_the_class_of_the_task(tmp_path: Path, tiny_bundle: str) -> None:
    assert isinstance(load_model(tiny_bundle), Classifier)
    multilabel = load_model(untrained(tmp_path, task="multilabel"))
    assert isinstance(multilabel, Classifier)
    assert multilabel.is_multilabel
    assert isinstance(load_model(untrained(tmp_path, task="seq2seq", data={"target": "target"})), Seq2Seq)


@pytest.mark.parametrize("task", ["classify", "seq2seq"])
def test_load_model_on_the_cpu_never_chooses_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    folder = untrained(tmp_path, task=task, data={"target": "target"} if task == "seq2seq" else {})

    def chosen() -> bool:
        pytest.fail("asked whether there is a GPU")

    monkeypatch.setattr("torch.cuda.is_available", chosen)
    model = load_model(folder, "cpu")
    assert model.device.type == "cpu"
    assert {weight.device.type for weight in model.model.parameters()} == {"cpu"}


def test_load_model_folder_without_bundle_raises(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a model bundle"):
        load_model(str(tmp_path))
