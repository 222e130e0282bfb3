"""Binary cross-entropy: a step means the same on any number of ranks; validation is scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import average_precision_score, f1_score, log_loss
from torch.utils.data import DataLoader

from tests.helpers.modules import LISTS, make_run
from txclf.data.batches import TokenRows
from txclf.data.labels import targets
from txclf.data.sampler import micro_batches, rank_share, scoring_batches
from txclf.metrics import binned, calibration
from txclf.training.module_multilabel import MultilabelModule

DRAW = np.random.default_rng(1)
SETS = [np.flatnonzero(DRAW.random(4) < 0.3).tolist() for _ in LISTS]


def table(part: slice = slice(None)) -> pa.Table:
    columns = {"input_ids": LISTS[part], "labels": SETS[part]}
    return pa.table({name: pa.array(lists, pa.list_(pa.int32())) for name, lists in columns.items()})


def make_module(*words: str, weights: list[float] | None = None, **settings: Any) -> MultilabelModule:
    torch.manual_seed(0)
    weight = None if weights is None else torch.tensor(weights)
    run = make_run("task=multilabel", *words)
    world_size = settings.pop("world_size", 1)
    settings = {"total_steps": 100, **settings}
    module = MultilabelModule(run, vocab_size=50, num_classes=4, class_weights=weight, **settings).eval()
    module.gradient_divisor = world_size * run.train.micro_batches
    return module


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (1, 3), (2, 1), (3, 2), (5, 3), (17, 1)])
@pytest.mark.parametrize(
    ("weights", "smoothing", "gamma"),
    [(None, 0.0, 0.0), ([0.5, 2.0, 9.0, 0.0], 0.0, 0.0), ([1.0, 2.0, 3.0, 4.0], 0.2, 0.0), (None, 0.0, 2.0)],
)
def test_training_step_parts_sum_to_the_mean_of_the_batch(
    world_size: int, accumulate: int, weights: list[float] | None, smoothing: float, gamma: float
) -> None:
    rows = TokenRows([table()])
    words = [f"train.label_smoothing={smoothing}", f"train.focal_gamma={gamma}", f"train.micro_batches={accumulate}"]
    module = make_module("train.batch_size=17", *words, weights=weights, world_size=world_size)
    batch = np.arange(20, 37)
    parts = [
        part for rank in range(world_size) for part in micro_batches(rank_share(batch, rank, world_size), accumulate)
    ]
    losses = [
        module.training_step({**rows.batch(part), "step_size": 17}, 0) / accumulate / world_size
        for part in parts
        if len(part)
    ]
    whole = rows.batch(batch)
    p, y = module.model(whole["input_ids"], whole["mask"]).sigmoid(), targets(whole["labels"], 4)
    weight = torch.ones(4) if weights is None else torch.tensor(weights)
    s = y * (1 - smoothing) + smoothing / 2
    each = -torch.where(y > 0, weight, 1.0) * (s * p.log() + (1 - s) * (1 - p).log())
    expected = (torch.where(y > 0, 1 - p, p) ** gamma * each).mean(dim=1).sum() / 17
    total = torch.stack(losses).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert module.step_loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = list(module.model.parameters())
    for one, two in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_adversarial_step_raises_the_loss() -> None:
    rows = TokenRows([table()])
    batch = {**rows.batch(np.arange(16)), "step_size": 16}
    plain = make_module("model.dropout=0").training_step(batch, 0)
    both = make_module("model.dropout=0", "train.adversarial=0.5").training_step(batch, 0)
    assert both.item() > plain.item()


@pytest.mark.filterwarnings("ignore")  # of Lightning, about loaders
@pytest.mark.parametrize("size", [1, 7, 64])
def test_validation_scores_all_rows_together(size: int) -> None:
    module = make_module("train.label_smoothing=0.3", weights=[1.0, 2.0, 3.0, 4.0])
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    for half in (slice(0, 30), slice(30, 60)):  # the second time, nothing of the first is left
        rows = TokenRows([table(half)])
        batches: Any = [rows.batch(part) for part in scoring_batches(rows.lengths, size)]
        trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
        whole = rows.batch(np.arange(30))
        with torch.no_grad():
            logits = module.model(whole["input_ids"], whole["mask"])
        truth, given = targets(whole["labels"], 4).numpy(), (logits >= 0).numpy()
        found = module.valid_metrics
        assert found["valid_rows"] == 30
        probabilities = logits.sigmoid().double().numpy()
        assert found["valid_loss"] == pytest.approx(log_loss(truth.ravel(), probabilities.ravel()), rel=1e-5)
        scaled = [(logits.double() / t).sigmoid().numpy().ravel() for t in calibration.TEMPERATURES]
        losses = [log_loss(truth.ravel(), each) for each in scaled]
        assert found["valid_calibrated_loss"] == pytest.approx(min(losses), rel=1e-5)
        assert found["valid_subset_accuracy"] == pytest.approx((given == truth).all(axis=1).mean())
        # In cells of 1/64 of a logit, in which more scores are equal.
        cells = binned.cells(logits).numpy()
        areas = [average_precision_score(truth[:, label], cells[:, label]) for label in range(4)]
        assert found["valid_map"] == pytest.approx(np.mean(areas))
        best = [max(f1_score(truth[:, i], cells[:, i] >= cell) for cell in set(cells[:, i])) for i in range(4)]
        assert found["valid_f1_macro"] == pytest.approx(np.mean(best))
        assert 0 < found["valid_f1_micro"] <= 1


def test_scores_of_two_ranks_add_up() -> None:
    rows, module = TokenRows([table()]), make_module()
    found = []
    for world_size in (1, 2, 3):
        module.on_validation_epoch_start()
        for rank in range(world_size):
            own = rank_share(np.arange(len(rows)), rank, world_size)
            for part in (own[batch] for batch in scoring_batches(rows.lengths[own], 8)):
                with torch.no_grad():
                    module.validation_step(rows.batch(part), 0)
        found.append((module.counts.clone(), module.sums.clone()))
    for counts, sums in found[1:]:
        assert torch.equal(counts[1].sum(-1), found[0][0][1].sum(-1))
        assert (counts - found[0][0]).abs().sum() <= 2  # a logit may differ in its last bit
        assert sums.tolist() == pytest.approx(found[0][1].tolist())
