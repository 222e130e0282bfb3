"""Export graphs: they compute what the model computes, for any number of rows and tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.serving import untrained
from txclf import Classifier, Seq2Seq
from txclf.data.tokenizer import target_ends
from txclf.inference.export_graphs import graphs
from txclf.inference.load import load_model


@pytest.mark.parametrize("task", ["classify", "multilabel"])
@pytest.mark.parametrize("columns", [["text"], ["title", "body"]])
def test_classifier_graph_gives_logits_and_probabilities(tmp_path: Path, task: str, columns: list[str]) -> None:
    model = load_model(untrained(tmp_path, task=task, data={"text": columns}), "cpu")
    assert isinstance(model, Classifier)
    (graph,) = graphs(model)
    assert graph.name == "model"
    assert list(graph.inputs) == list(graph.shapes) == ["input_ids", "mask"]
    ids = torch.randint(5, 100, (2, 7))
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    with torch.inference_mode():
        logits, probabilities = graph.module(ids, mask)
        torch.testing.assert_close(logits, model.model(ids, mask))
    torch.testing.assert_close(probabilities, torch.from_numpy(model.calibrated(logits.numpy())))


def test_classifier_graph_with_segments_has_a_third_input(tmp_path: Path, tiny_bundle: str) -> None:
    model = Classifier.load(tiny_bundle)
    model.metadata = model.metadata.model_copy(update={"num_segments": 2})
    (graph,) = graphs(model)
    assert list(graph.inputs) == list(graph.shapes) == ["input_ids", "mask", "segments"]


def test_seq2seq_graphs_give_the_logits_of_the_model_token_by_token(tmp_path: Path) -> None:
    folder = untrained(tmp_path, task="seq2seq", data={"target": "target"})
    model = load_model(folder, "cpu")
    assert isinstance(model, Seq2Seq)
    encoder, decoder = graphs(model)
    assert (encoder.name, decoder.name) == ("encoder", "decoder")
    assert encoder.outputs == ["source_key_0", "source_value_0"]
    assert list(decoder.inputs) == ["token", "mask", "source_key_0", "source_value_0", "key_0", "value_0"]
    assert decoder.outputs == ["logits", "next_key_0", "next_value_0"]
    ids = torch.randint(5, 100, (2, 6))
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    begin, _ = target_ends(model.target_tokenizer)
    target_ids = torch.cat([torch.full((2, 1), begin), torch.randint(5, 100, (2, 3))], dim=1)
    with torch.inference_mode():
        expected = model.model(ids, mask, target_ids)
        source = encoder.module(ids, mask)
        past = [torch.zeros(2, 2, 0, 8), torch.zeros(2, 2, 0, 8)]  # (B, H, P, E) with P = 0
        for step in range(4):
            logits, *past = decoder.module(target_ids[:, step : step + 1], mask, *source, *past)
            torch.testing.assert_close(logits, expected[:, step], atol=1e-5, rtol=1e-4)
