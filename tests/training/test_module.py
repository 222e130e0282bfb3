"""The classifier's module: a step is the same on any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import f1_score, log_loss
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.helpers.modules import DRAW, LISTS, make_run
from txclf.config.run_config import RunConfig
from txclf.data.batches import TokenRows
from txclf.data.sampler import micro_batches, rank_share, scoring_batches
from txclf.metrics import calibration
from txclf.training.lr_schedule import learning_rate_factor
from txclf.training.module import ClassifierModule

LABELS = DRAW.integers(0, 3, 60)


def make_module(run: RunConfig, weights: torch.Tensor | None = None, **settings: Any) -> ClassifierModule:
    torch.manual_seed(0)
    world_size = settings.pop("world_size", 1)
    settings = {"total_steps": 100, **settings}
    module = ClassifierModule(run, vocab_size=50, num_classes=3, class_weights=weights, **settings).eval()
    module.gradient_divisor = world_size * run.train.micro_batches
    return module


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return TokenRows([pa.table({"input_ids": pa.array(LISTS, pa.list_(pa.int32())), "label": LABELS})])


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (1, 3), (2, 1), (3, 2), (5, 3), (7, 1)])
@pytest.mark.parametrize(
    ("weights", "smoothing"), [(None, 0.0), (None, 0.2), ([0.5, 1.0, 3.0], 0.0), ([0.5, 0.0, 3.0], 0.1)]
)
def test_training_step_parts_sum_to_the_mean_of_the_batch(
    rows: TokenRows, world_size: int, accumulate: int, weights: list[float] | None, smoothing: float
) -> None:
    size = 17
    run = make_run(
        f"train.batch_size={size}", f"train.micro_batches={accumulate}", f"train.label_smoothing={smoothing}"
    )
    weight = None if weights is None else torch.tensor(weights)
    module = make_module(run, weight, world_size=world_size)
    batch = np.arange(20, 20 + size)
    # Lightning divides by the accumulated parts, DDP takes the mean over the ranks.
    parts = [
        part for rank in range(world_size) for part in micro_batches(rank_share(batch, rank, world_size), accumulate)
    ]
    losses = [
        module.training_step({**rows.batch(part), "step_size": 17}, 0) / accumulate / world_size
        for part in parts
        if len(part)
    ]
    whole = rows.batch(batch)
    logits, labels = module.model(whole["input_ids"], whole["mask"]), whole["labels"]
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    expected = (each if weight is None else weight[labels] * each).sum() / size
    total = torch.stack(losses).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert module.step_loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = list(module.model.parameters())
    for one, two in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (1, 3), (2, 1), (5, 3)])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("weights", [None, [0.5, 0.0, 3.0]])
def test_focal_loss_parts_sum_to_the_mean_of_the_batch(
    rows: TokenRows, world_size: int, accumulate: int, gamma: float, weights: list[float] | None
) -> None:
    run = make_run("train.batch_size=17", f"train.micro_batches={accumulate}", f"train.focal_gamma={gamma}")
    module = make_module(run, None if weights is None else torch.tensor(weights), world_size=world_size)
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
    # Equation 5 of arXiv:1708.02002, as it is written.
    p = module.model(whole["input_ids"], whole["mask"]).softmax(dim=1)[torch.arange(17), whole["labels"]]
    alpha = torch.ones(17) if weights is None else torch.tensor(weights)[whole["labels"]]
    expected = (-alpha * (1 - p) ** gamma * p.log()).sum() / 17
    total = torch.stack(losses).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert module.step_loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = list(module.model.parameters())
    for one, two in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 3), (2, 1), (3, 2)])
def test_adversarial_step_is_the_same_on_any_number_of_ranks(rows: TokenRows, world_size: int, accumulate: int) -> None:
    words, batch = ["train.batch_size=17", "train.adversarial=0.5"], np.arange(20, 37)
    whole = make_module(make_run(*words))
    expected = whole.training_step({**rows.batch(batch), "step_size": 17}, 0)
    module = make_module(make_run(*words, f"train.micro_batches={accumulate}"), world_size=world_size)
    parts = [
        part for rank in range(world_size) for part in micro_batches(rank_share(batch, rank, world_size), accumulate)
    ]
    total = sum(
        module.training_step({**rows.batch(part), "step_size": 17}, 0) / accumulate / world_size for part in parts
    )
    assert isinstance(total, torch.Tensor)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    # The log shows the loss of the rows as they are; the shift makes the step's loss a higher one.
    assert module.step_loss.item() == pytest.approx(whole.step_loss.item(), rel=1e-5)
    assert expected.item() > whole.step_loss.item()
    ones = torch.autograd.grad(total, list(module.model.parameters()))
    for one, two in zip(ones, torch.autograd.grad(expected, list(whole.model.parameters())), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("size", [1, 7, 60])
def test_validation_scores_all_rows_together(size: int) -> None:
    module = make_module(make_run("train.label_smoothing=0.3"), torch.tensor([1.0, 2.0, 3.0]))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    for half in (slice(0, 30), slice(30, 60)):  # the second time, nothing of the first is left
        table = pa.table({"input_ids": pa.array(LISTS[half], pa.list_(pa.int32())), "label": LABELS[half]})
        rows = TokenRows([table])
        batches: Any = [rows.batch(part) for part in scoring_batches(rows.lengths, size)]
        trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
        whole = rows.batch(np.arange(30))
        with torch.no_grad():
            logits = module.model(whole["input_ids"], whole["mask"]).double()
        probabilities = logits.softmax(dim=1).numpy()
        predicted = probabilities.argmax(axis=1)
        found = module.valid_metrics
        assert found["valid_rows"] == 30
        assert found["valid_loss"] == pytest.approx(log_loss(rows.labels, probabilities), rel=1e-5)
        losses = [log_loss(rows.labels, (logits / t).softmax(dim=1).numpy()) for t in calibration.TEMPERATURES]
        assert found["valid_calibrated_loss"] == pytest.approx(min(losses), rel=1e-5)
        assert found["valid_accuracy"] == pytest.approx((predicted == rows.labels).mean())
        assert found["valid_f1_macro"] == pytest.approx(f1_score(rows.labels, predicted, average="macro"))


@pytest.mark.parametrize("start", [0, 1, 30])
def test_configure_optimizers_resumes_the_schedule(start: int) -> None:
    run = make_run("train.learning_rate=0.5", "train.schedule=linear", "train.warmup_fraction=0.2")
    parts = make_module(run, start_step=start).configure_optimizers()
    schedule, optimizer = parts["lr_scheduler"]["scheduler"], parts["optimizer"]
    assert parts["lr_scheduler"]["interval"] == "step"
    for step in range(start, start + 40):
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(0.5 * learning_rate_factor(run.train, step, 100))
        optimizer.step()
        schedule.step()


def test_configure_optimizers_uses_the_run_file() -> None:
    run = make_run("train.betas=[0.8, 0.95]", "train.weight_decay=0.07", "train.learning_rate=2e-3")
    module = make_module(run)
    optimizer = module.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.07, 0.0]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}
    assert {group["initial_lr"] for group in optimizer.param_groups} == {2e-3}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(module.model.parameters()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_state_dict_is_the_same_with_compile() -> None:
    plain, compiled = make_module(make_run()), make_module(make_run("train.compile=true"))
    assert list(plain.model.state_dict()) == list(compiled.model.state_dict())
    assert plain.network is plain.model
    assert compiled.network is not compiled.model
