"""The search space: draws, and values that are refused before a search starts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from txclf.config import run_config
from txclf.config.search_space import Domain, Tune
from txclf.core.errors import ConfigError

DOMAINS: list[dict[str, Any]] = [
    {"choice": [1, "a", None]},
    {"grid": [[0.9, 0.99], [0.8, 0.9]]},
    {"uniform": [-1.0, 2.0]},
    {"loguniform": [1e-5, 1e-1]},
    {"quniform": [0.1, 0.55, 0.1]},
    {"randint": [2, 5]},
]


def inside(domain: Domain, value: Any) -> bool:
    if domain.finite:
        return value in domain.values
    low, high = domain.limits
    if domain.quniform:
        return any(abs(value - (0.1 + step * 0.1)) < 1e-12 for step in range(5))
    return low <= value <= high and (not domain.randint or type(value) is int)


@pytest.mark.parametrize("given", DOMAINS, ids=lambda given: next(iter(given)))
def test_domain_draws_and_perturbed_values_stay_inside(given: dict[str, Any]) -> None:
    domain = Domain.model_validate(given)
    generator = np.random.default_rng(0)
    drawn = [domain.draw(generator) for _ in range(300)]
    near = [domain.perturbed(value, generator) for value in drawn]
    assert all(inside(domain, value) for value in drawn + near)
    assert len({str(value) for value in drawn}) == {"choice": 3, "grid": 2, "quniform": 5, "randint": 4}.get(
        domain.kind, 300
    )
    assert any(one != other for one, other in zip(drawn, near, strict=True))


def test_domain_loguniform_has_an_even_logarithm() -> None:
    domain, generator = Domain(loguniform=(1e-4, 1.0)), np.random.default_rng(1)
    logarithms = np.log10([domain.draw(generator) for _ in range(4000)])
    counts, _ = np.histogram(logarithms, bins=[-4, -3, -2, -1, 0])
    assert counts.min() > 900


SPACE = {
    "train.batch_size": {"grid": [16, 32]},
    "model.num_layers": {"grid": [1, 2, 3]},
    "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
}


def test_drawn_depends_on_seed_and_number_only() -> None:
    few, many = (Tune.model_validate({"trials": count, "space": SPACE}) for count in (3, 30))
    assert [few.drawn(number, 7) for number in range(3)] == [many.drawn(number, 7) for number in range(3)]
    rates = {many.drawn(number, 7)["train.learning_rate"] for number in range(30)}
    assert len(rates) == 30
    assert many.drawn(0, 7) != many.drawn(0, 8) != many.drawn(0, 8, attempt=1)


def test_drawn_grid_combinations_come_equally_often() -> None:
    tune = Tune.model_validate({"trials": 12, "space": SPACE})
    drawn = [tune.drawn(number, 0) for number in range(12)]
    counts = Counter((each["train.batch_size"], each["model.num_layers"]) for each in drawn)
    assert set(counts.values()) == {2}
    assert len(counts) == 6


def test_drawn_grid_search_runs_every_combination_once() -> None:
    space = {"train.batch_size": {"grid": [16, 32]}, "model.num_layers": {"choice": [1, 2, 3]}}
    tune = Tune.model_validate({"search": "grid", "space": space})
    assert tune.total == 6
    assert len({str(tune.drawn(number, 0)) for number in range(6)}) == 6


def test_drawn_points_come_first_and_are_completed() -> None:
    tune = Tune.model_validate(
        {"space": SPACE, "points_to_evaluate": [{"train.learning_rate": 0.005}, {"model.num_layers": 3}]}
    )
    assert tune.drawn(0, 0)["train.learning_rate"] == 0.005
    assert tune.drawn(1, 0)["model.num_layers"] == 3
    assert 1e-4 <= tune.drawn(1, 0)["train.learning_rate"] <= 1e-2


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"train.learning_rat": {"choice": [1e-3]}},
        {},
        "`tune.space.train.learning_rat`: unknown key. Did you mean `learning_rate`?",
    ),
    ({"trian.epochs": {"choice": [1]}}, {}, "`tune.space.trian.epochs`: cannot be searched. Name a key of seed, data"),
    ({"name": {"choice": ["a"]}}, {}, "`tune.space.name`: cannot be searched"),
    ({"compute.workers": {"choice": [1, 2]}}, {}, "`tune.space.compute.workers`: cannot be searched"),
    ({"train.monitor": {"choice": ["valid_loss"]}}, {}, "`tune.space.train.monitor`: cannot be searched"),
    (
        {"model.num_layers": {"choice": [1, 0]}},
        {},
        "`tune.space.model.num_layers`: input should be greater than or equal to 1",
    ),
    (
        {"model.position_encoding": {"choice": ["rotary", "round"]}},
        {},
        "`tune.space.model.position_encoding`: input should be",
    ),
    ({"model.dropout": {"uniform": [0, 1]}}, {}, "`tune.space.model.dropout`: input should be less than 1, not 1.0"),
    ({"train.epochs": {"uniform": [1, 3]}}, {}, "`tune.space.train.epochs`: input should be a valid integer"),
    ({"train.epochs": {"quniform": [1, 3, 0.5]}}, {}, "`tune.space.train.epochs`: input should be a valid integer"),
    ({"train.epochs.x": {"choice": [1]}}, {}, "`tune.space.train.epochs.x`"),
    ({"model.dropout": {"loguniform": [0, 0.5]}}, {}, "the lower end must be above 0"),
    ({"model.dropout": {"uniform": [0.5, 0.1]}}, {}, "the lower end must come first"),
    (
        {"model.dropout": {"uniform": [0, 0.1], "choice": [0]}},
        {},
        "needs exactly one domain. Set one of choice, grid, uniform",
    ),
    ({"model.dropout": {}}, {}, "needs exactly one domain. Set one of choice, grid, uniform"),
    ({"model.dropout": {"choice": []}}, {}, "should have at least 1 item"),
    ({"model.dropout": {"normal": [0, 1]}}, {}, "`tune.space.model.dropout.normal`: unknown key. "),
    (
        {"model.dropout": {"uniform": [0, 0.1]}},
        {"search": "grid"},
        "`search: grid` cannot search `model.dropout`, a range",
    ),
    (
        {"seed": {"choice": [1]}},
        {"points_to_evaluate": [{"sead": 1}]},
        "`points_to_evaluate`: `sead` is not a key of `space`",
    ),
    (
        {"seed": {"choice": [1]}},
        {"points_to_evaluate": [{"seed": 2}]},
        "`points_to_evaluate`: 2 is not among the values of `seed`",
    ),
    (
        {"model.dropout": {"uniform": [0, 0.1]}},
        {"points_to_evaluate": [{"model.dropout": -1}]},
        "`points_to_evaluate`: -1 is not among",
    ),
    (
        {"model.dropout": {"quniform": [0, 0.4, 0.1]}},
        {"points_to_evaluate": [{"model.dropout": 0.15}]},
        "0.15 is not among",
    ),
    ({"model.pooling.x": {"choice": [1]}}, {}, "`tune.space.model.pooling.x`"),
    ({"seed": {"choice": [1]}}, {"metric": "valid_loss", "mode": "max"}, "ranks the worst `valid_"),
    ({"seed": {"choice": [1]}}, {"metric": "loss"}, "`tune.metric`: input should be 'valid_loss'"),
    ({"seed": {"choice": [1]}}, {"search": "optuna", "scheduler": {"kind": "pbt"}}, "both choose settings"),
    ({"seed": {"grid": [1, 2]}}, {"search": "optuna"}, "`search: optuna` chooses values, and `seed` is a `grid`."),
    ({"seed": {"choice": [1]}}, {"scheduler": {"kind": "hyperband"}}, "`tune.scheduler.kind`: input should be 'asha'"),
]


@pytest.mark.parametrize(("space", "tune", "message"), REFUSED)
def test_parse_invalid_space_is_refused(space: dict[str, Any], tune: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as info:
        run_config.parse({"tune": {"space": space, **tune}})
    assert message in str(info.value)


def test_parse_value_that_only_clashes_with_others_is_accepted() -> None:
    # 5 heads do not divide a width of 128, but do divide 160.
    run_config.parse(
        {"tune": {"space": {"model.num_heads": {"choice": [4, 5]}, "model.hidden_size": {"choice": [128, 160]}}}}
    )


def test_domain_tuples_of_a_program_are_the_lists_of_its_files() -> None:
    domain = Domain.model_validate({"choice": [(0.9, 0.98), (0.8, (1, 2))]})
    assert domain.choice == ([0.9, 0.98], [0.8, [1, 2]])
    space = {"train.betas": {"choice": [(0.9, 0.98), (0.8, 0.9)]}}
    tune = Tune.model_validate({"space": space, "points_to_evaluate": [{"train.betas": (0.9, 0.98)}]})
    assert tune.points_to_evaluate == ({"train.betas": [0.9, 0.98]},)
