"""Export: exported files give the answers of the bundle, or are not kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from tests.helpers.command import txclf
from tests.helpers.encoders import ARCHITECTURES
from tests.helpers.files import make_rows, write_csv
from tests.helpers.fine_tuned import fine_tuned
from tests.helpers.multilabel import tagging
from tests.helpers.pairs import pairs
from tests.helpers.runs import go_on, tiny
from txclf import Classifier, Seq2Seq
from txclf.core.errors import BundleError, ConfigError, DataError
from txclf.data.prepare import prepare
from txclf.data.tokenizer import decode, target_ends
from txclf.inference.export import export
from txclf.training.train import train

TEXTS = ["the good film of the year", "a bad plot", "good", "the score of a bad film that is long and bad"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Train a run and return its bundle."""
    folder = tmp_path_factory.mktemp("exported")
    run = tiny(folder, write_csv(folder / "rows.csv", make_rows(300)), "model.dropout=0.1")
    train(run, prepare(run), go_on)
    return f"{run.run_folder}/model"


def test_export_every_format_gives_the_answers_of_the_bundle(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = {result.format: result for result in export(model, str(out))}
    assert list(exported) == ["onnx", "torch", "int8"]
    for result in exported.values():
        assert result.kept
        assert result.rows > 20
        assert result.bytes == sum((out / name).stat().st_size for name in result.files)
        assert result.rows_per_second > 0
    assert exported["onnx"].agreement == exported["torch"].agreement == 1.0
    assert exported["onnx"].largest_difference < 1e-4
    assert exported["torch"].largest_difference < 1e-4
    assert exported["int8"].largest_difference > 0
    assert exported["int8"].bytes < exported["onnx"].bytes
    record = json.loads((out / "export.json").read_text())
    classifier = Classifier.load(model)
    assert record["labels"] == classifier.labels
    assert record["temperature"] == classifier.temperature
    assert [one["format"] for one in record["formats"]] == ["onnx", "torch", "int8"]
    # Used without the bundle, on any number of rows of any length.
    session = onnxruntime.InferenceSession(out / "model.onnx")
    program = torch.export.load(str(out / "model.pt2")).module()
    assert session.get_modelmeta().producer_name == "pytorch"
    expected = classifier.probabilities([(text,) for text in TEXTS])
    ids = [classifier.tokenizer.encode(text).ids[: record["max_length"]] for text in TEXTS]
    for rows in ([0], [2], [0, 1, 2, 3]):
        longest = max(len(ids[row]) for row in rows)
        input_ids = np.array([ids[row] + [0] * (longest - len(ids[row])) for row in rows])
        mask = np.array([[position < len(ids[row]) for position in range(longest)] for row in rows])
        names = record["graphs"]["model"]["outputs"]
        logits, probabilities = session.run(names, {"input_ids": input_ids, "mask": mask})
        np.testing.assert_allclose(probabilities, expected[rows], atol=1e-5)
        assert logits.shape == probabilities.shape
        np.testing.assert_allclose(program(torch.tensor(input_ids), torch.tensor(mask))[1], expected[rows], atol=1e-5)


def test_export_multilabel_model_with_windows_is_exact(tag_data: tuple[str, str], tmp_path: Path) -> None:
    windows = ["data.truncation=windows", "data.window_overlap=1", "tokenizer.max_length=4"]
    run = tagging(tmp_path, tag_data, "train.epochs=2", *windows)
    train(run, prepare(run), go_on)
    (one,) = export(f"{run.run_folder}/model", formats=["onnx"])
    assert one.kept
    assert one.agreement == 1.0
    record = json.loads(Path(run.run_folder, "model/export/export.json").read_text())
    assert record["task"] == "multilabel"
    assert set(record["thresholds"]) == set(record["labels"])
    assert record["truncation"]["mode"] == "windows"


def test_export_seq2seq_model_generates_the_same_texts(pair_data: str, tmp_path: Path) -> None:
    run = pairs(tmp_path, pair_data, "train.epochs=8", "generate.num_beams=1", "model.num_decoder_layers=2")
    train(run, prepare(run), go_on)
    folder = f"{run.run_folder}/model"
    for one in export(folder, min_agreement=0.5):
        assert one.kept
        assert one.files[0].startswith("encoder")
        assert one.format == "int8" or (one.agreement == 1.0 and one.largest_difference < 1e-3)
    bundle = Seq2Seq.load(folder)
    record = json.loads(Path(folder, "export/export.json").read_text())["graphs"]
    encoder, decoder = (onnxruntime.InferenceSession(f"{folder}/export/{name}.onnx") for name in ("encoder", "decoder"))
    begin, end = target_ends(bundle.target_tokenizer)
    for text in ("small red", "old blue green new"):
        ids = np.array([bundle.tokenizer.encode(text).ids])
        mask = np.ones(ids.shape, bool)
        source = encoder.run(None, {"input_ids": ids, "mask": mask})
        encoded = dict(zip(record["encoder"]["outputs"], source, strict=True))
        seen = {
            name: np.zeros((1, 2, 0, 16), np.float32)
            for name in record["decoder"]["inputs"]
            if name.startswith(("key", "value"))
        }
        output, token = list[int](), begin
        while token != end and len(output) < 10:
            feed = {"token": np.array([[token]]), "mask": mask, **encoded, **seen}
            logits, *more = decoder.run(record["decoder"]["outputs"], feed)
            seen = dict(zip(seen, more, strict=True))
            token = int(logits[0].argmax())
            output.append(token)
        assert decode(bundle.target_tokenizer, [output]) == bundle([text])


@pytest.mark.parametrize(("architecture", "pooling"), [*((name, "cls") for name in ARCHITECTURES), ("bert", "mean")])
def test_export_fine_tuned_model_with_two_columns_is_exact(tmp_path: Path, architecture: str, pooling: str) -> None:
    from transformers import AutoTokenizer

    folder = fine_tuned(tmp_path, architecture, data={"text": ["title", "body"]}, model={"pooling": pooling})
    pairs = [(first, second) for first in TEXTS for second in reversed(TEXTS)]
    rows = write_csv(tmp_path / "rows.csv", pairs, ("title", "body"))
    out = tmp_path / "out"
    for result in export(folder, str(out), formats=["onnx", "torch"], data=[rows]):
        assert result.kept
        assert result.rows == len(pairs)
        assert result.agreement == 1.0
        assert result.largest_difference < 1e-4
    # The tokenizer of Transformers gives the inputs.
    record = json.loads((out / "export.json").read_text())
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    encoded = tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True, padding=True, return_tensors="np")
    inputs = {"input_ids": encoded["input_ids"], "mask": encoded["attention_mask"].astype(bool)}
    if architecture == "bert":
        inputs["segments"] = encoded["token_type_ids"]
    assert record["graphs"]["model"]["inputs"] == list(inputs)
    (probabilities,) = onnxruntime.InferenceSession(out / "model.onnx").run(["probabilities"], inputs)
    np.testing.assert_allclose(probabilities, Classifier.load(folder).probabilities(pairs), atol=1e-5)


def test_export_fine_tuned_model_has_no_segments_with_one_column(tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "rows.csv", [(text, "") for text in TEXTS])
    (result,) = export(fine_tuned(tmp_path), str(tmp_path / "out"), formats=["int8"], data=[rows], min_agreement=0.0)
    assert result.kept
    assert result.largest_difference > 0
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert record["graphs"]["model"]["inputs"] == ["input_ids", "mask"]
    assert record["special_tokens"] == {"prefix": [2], "separator": [3], "suffix": [3], "pad": 0, "token_types": 2}


def test_export_file_below_min_agreement_is_not_kept(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.int8.onnx").write_bytes(b"an earlier one")
    (one,) = export(model, str(out), formats=["int8"], min_agreement=1.01)
    assert not one.kept
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "tokenizer.json"]


def test_export_command_compares_on_the_rows_of_data(model: str, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "alone")
    rows = [f"{number};{text}" for number, text in enumerate([*TEXTS, "die gr\u00f6\u00dfte Freude", "ein \u00c4rger"])]
    (tmp_path / "rows.csv").write_text("id;text\n" + "\n".join(rows) + "\n", encoding="latin-1")  # as Excel writes it
    alone = str(tmp_path / "alone")
    with pytest.raises(ConfigError, match=r"not in a finished run, .* --data"):
        export(alone)
    done = txclf(tmp_path, "export", alone, "--data", "rows.csv", "--format", "onnx")
    assert done.returncode == 0, done.stderr
    assert "6 rows by each file and by the bundle" in done.stdout
    assert "100.00%" in done.stdout
    assert sorted(path.name for path in (tmp_path / "alone/export").iterdir()) == [
        "export.json",
        "model.onnx",
        "tokenizer.json",
    ]
    (tmp_path / "empty.csv").write_text("text\n\n")
    with pytest.raises(DataError):
        export(alone, data=[f"{tmp_path}/empty.csv"])


def test_export_invalid_bundle_or_format_raises(model: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a model bundle"):
        export(str(tmp_path))
    done = txclf(tmp_path, "export", model, "--format", "tflite")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: --format tflite: unknown format. Pass one of onnx, torch, int8, mlflow."
    )
