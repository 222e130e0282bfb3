"""The loss and the scores of `seq2seq` against torch on the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

import txclf
from tests.helpers.pairs import pairs
from txclf.data.batches import PairRows
from txclf.training import Seq2SeqModule, ShardsDataModule
from txclf.training.module_seq2seq import PADDING

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def data_module(tmp_path: Path, pair_data: str) -> ShardsDataModule:
    run = pairs(tmp_path, pair_data)
    return ShardsDataModule(run, txclf.prepare(run))


def test_loss_is_the_mean_over_the_target_tokens_of_all_parts(data_module: ShardsDataModule) -> None:
    torch.manual_seed(0)
    module = Seq2SeqModule.from_data(data_module).eval()
    rows = data_module.reader.rows([data_module.reader.read(0)])
    assert isinstance(rows, PairRows)
    chosen = np.arange(16)
    size = rows.step_size(chosen)
    whole = module.summed_loss(rows.batch(chosen)) / size
    parts = sum(module.summed_loss(rows.batch(part)) for part in np.array_split(chosen, 3)) / size
    assert float(parts) == pytest.approx(float(whole), rel=1e-5)
    logits, wanted = module.predict_targets(rows.batch(chosen))
    assert int((wanted != PADDING).sum()) == size
    expected = F.cross_entropy(logits[wanted != PADDING], wanted[wanted != PADDING])
    assert float(whole) == pytest.approx(float(expected), rel=1e-5)


def test_scores_are_those_of_all_rows_together(data_module: ShardsDataModule) -> None:
    torch.manual_seed(0)
    module = Seq2SeqModule.from_data(data_module)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(accelerator="cpu", **quiet).validate(module, data_module, verbose=False)  # type: ignore[arg-type]
    (rows,) = data_module.source.scoring("valid", 0, 1)
    assert isinstance(rows, PairRows)
    with torch.no_grad():
        logits, wanted = module.predict_targets(rows.batch(np.arange(len(rows))))
    inside = wanted != PADDING
    found = module.valid_metrics
    assert found["valid_rows"] == len(rows)
    assert found["valid_loss"] == pytest.approx(float(F.cross_entropy(logits[inside], wanted[inside])), rel=1e-5)
    right = (logits.argmax(dim=-1) == wanted)[inside]
    assert found["valid_token_accuracy"] == pytest.approx(float(right.double().mean()))
