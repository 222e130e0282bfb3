"""Parameter groups, and the optimizer of a resumed run."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.modules import make_run
from txclf.config.sections import Model
from txclf.config.train import Train
from txclf.model.classifier import TransformerClassifier
from txclf.training.optim import parameter_groups, restore_optimizer


@pytest.mark.parametrize(("pooling", "positions"), [("mean", "rotary"), ("cls", "learned"), ("attention", "none")])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_parameter_groups_decay_weight_matrices_only(pooling: str, positions: str, norm: str) -> None:
    run = make_run(
        f"model.pooling={pooling}",
        f"model.position_encoding={positions}",
        f"model.norm={norm}",
        "model.classifier_hidden_size=8",
    )
    model = TransformerClassifier(run.model, 50, 3, run.tokenizer.max_length)
    decayed, others = parameter_groups(model, Train(weight_decay=0.3))
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [[name_of[id(parameter)] for parameter in group["params"]] for group in (decayed, others)]
    assert sorted(names[0] + names[1]) == sorted(name_of.values())
    block = ["attention.inputs", "attention.output", "feedforward.0", "feedforward.2"]
    expected = {f"blocks.0.{layer}.weight" for layer in block} | {"head.1.weight", "head.4.weight"}
    assert set(names[0]) == expected | ({"pooling.score.weight"} if pooling == "attention" else set())
    assert "embedding.weight" in names[1]
    assert ("first" in names[1], "positions.table" in names[1]) == (pooling == "cls", positions == "learned")


def test_restore_optimizer_loads_moments_and_keeps_the_settings_of_the_run() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    donor = torch.optim.AdamW([{"params": [parameter], "weight_decay": 0.5}], lr=0.1)
    parameter.grad = torch.ones(3)
    donor.step()
    optimizer = torch.optim.AdamW([{"params": [parameter], "weight_decay": 0.01}], lr=0.3)
    restore_optimizer(optimizer, donor.state_dict())
    assert torch.equal(optimizer.state[parameter]["exp_avg"], donor.state[parameter]["exp_avg"])
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.3, 0.01)


def test_parameter_groups_are_the_same_whatever_the_rates() -> None:
    model = TransformerClassifier(Model(num_layers=2, hidden_size=8, num_heads=2, intermediate_size=8), 50, 3, 16)
    for decay in (1.0, 0.5):
        sizes = []
        for rate, head in ((1e-3, 2e-3), (1e-3, 1e-3), (2e-3, 1e-3)):
            groups = parameter_groups(model, Train(learning_rate=rate, head_learning_rate=head, layer_decay=decay))
            sizes.append([len(group["params"]) for group in groups])
        assert sizes[0] == sizes[1] == sizes[2]
