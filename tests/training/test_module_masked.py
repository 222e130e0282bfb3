"""The module of masked tokens means the same on any number of ranks, and a classifier starts from what it learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import txclf
from tests.helpers.runs import tiny
from txclf.core import storage
from txclf.core.errors import StorageError
from txclf.data.sampler import micro_batches, rank_share
from txclf.model.classifier import TransformerClassifier
from txclf.model.masked_tokens import encoder_weights
from txclf.training.data_module import ShardsDataModule
from txclf.training.module import ClassifierModule
from txclf.training.module_masked import MaskedTokenModule, start_from


def module_of(folder: Path, data: str, *words: str) -> tuple[ShardsDataModule, MaskedTokenModule]:
    run = tiny(folder, data, "model.dropout=0", *words)
    module = ShardsDataModule(run, txclf.prepare(run), masked=0.3)
    torch.manual_seed(0)
    return module, MaskedTokenModule.from_data(module)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_gradient_of_the_ranks_and_micro_batches_is_that_of_the_whole_batch(
    tmp_path: Path, data: str, parts: int
) -> None:
    data_module, module = module_of(tmp_path, data)
    reader = data_module.reader
    table = reader.read(0)
    rows = reader.rows([table], reader.windows.token_key(0))
    positions = reader.batches(0, rows)[:1]
    size = rows.step_size(positions[0])
    ids = [rows.batch(part)["input_ids"] for part in positions]
    assert size == sum(int((part < 0).sum()) for part in ids)
    shares = [rank_share(positions, rank, parts)[0] for rank in range(parts)]
    pieces = [piece for share in shares for piece in micro_batches(share, 2)]
    gradients = []
    for split in ([positions[0]], pieces):
        module.zero_grad()
        for piece in split:
            (module.summed_loss(rows.batch(piece)) / size).backward()  # type: ignore[no-untyped-call]
        gradients.append(module.model.encoder.embedding.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_classifier_starts_from_the_encoder_and_keeps_its_own_head(tmp_path: Path, data: str) -> None:
    data_module, module = module_of(tmp_path, data)
    path = str(tmp_path / "encoder.safetensors")
    save_file(encoder_weights(module.model.state_dict()), path)
    torch.manual_seed(1)
    classifier = ClassifierModule.from_data(data_module).model
    assert isinstance(classifier, TransformerClassifier)
    head = classifier.state_dict()["head.1.weight"].clone()
    start_from(classifier, storage.absolute(path))
    torch.testing.assert_close(classifier.embedding.weight, module.model.encoder.embedding.weight)
    torch.testing.assert_close(classifier.blocks.state_dict(), module.model.encoder.blocks.state_dict())
    torch.testing.assert_close(classifier.state_dict()["head.1.weight"], head)


def test_damaged_encoder_is_named_with_what_to_do(tmp_path: Path, data: str) -> None:
    data_module, _ = module_of(tmp_path, data)
    path = tmp_path / "pretraining-0" / "encoder.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"not weights")
    with pytest.raises(StorageError, match=r"damaged: .* Remove `.*pretraining-0` and pass --resume"):
        start_from(ClassifierModule.from_data(data_module).model, str(path))
