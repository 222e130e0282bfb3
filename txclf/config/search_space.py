"""The `tune` section of the run file: the search space and the search algorithm.

    tune:
      trials: 16
      scheduler: {kind: asha, grace_period: 1, reduction_factor: 3}
      space:
        train.learning_rate: {loguniform: [1e-4, 1e-2]}
        model.num_layers: {choice: [1, 2, 4]}

Every draw is a function of (seed, number of the trial). So a search that is resumed or extended draws the same settings
as one that runs without a stop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_serializer, model_validator

from txclf.config.base import Count, Duration, Monitor, Section, direction
from txclf.config.dotted import Settings


def _listed(value: object) -> object:
    """Return a value of a Python program as JSON and YAML give it back, tuples as lists."""
    if isinstance(value, dict):
        return {key: _listed(one) for key, one in value.items()}
    return [_listed(one) for one in value] if isinstance(value, list | tuple) else value


Values = Annotated[tuple[Annotated[Any, BeforeValidator(_listed)], ...], Field(min_length=1, max_length=1000)]
Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]


class Domain(Section):
    """Values of a searched key, as exactly one of the keys below."""

    choice: Values | None = None
    """`[a, b, …]`: one of these values, each equally likely."""
    grid: Values | None = None
    """`[a, b, …]`: these values in turn, so that every combination of `grid` keys comes equally often."""
    uniform: tuple[Number, Number] | None = None
    """`[low, high]`: a number between the two."""
    loguniform: tuple[Number, Number] | None = None
    """`[low, high]`: a number between the two, with an evenly distributed logarithm."""
    quniform: tuple[Number, Number, Annotated[float, Field(ge=1e-9, le=1e9)]] | None = None
    """`[low, high, step]`: one of low, low + step, … up to high."""
    randint: tuple[Whole, Whole] | None = None
    """`[low, high]`: a whole number from low to high, both included."""

    @model_validator(mode="after")
    def _one_kind_in_order(self) -> Self:
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"needs exactly one domain. Set one of {names}, as in `{{uniform: [0, 0.3]}}`.")
        if not self.finite:
            low, high = self.limits
            if low >= high:
                raise ValueError(f"`{self.kind}: [{low:g}, {high:g}]`: the lower end must come first. Exchange them.")
            if self.loguniform and low <= 0:
                raise ValueError(
                    f"`loguniform: [{low:g}, {high:g}]`: the lower end must be above 0, to have a logarithm. Raise it."
                )
        return self

    @property
    def kind(self) -> str:
        """Name of the domain: `choice`, `grid`, `uniform` and so on."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @model_serializer
    def _only_the_set_key(self) -> dict[str, Any]:
        return {self.kind: list(getattr(self, self.kind))}

    @property
    def finite(self) -> bool:
        """True if the values are listed."""
        return self.kind in ("choice", "grid")

    @property
    def values(self) -> tuple[Any, ...]:
        """Listed values; the ends of a range."""
        return self.choice or self.grid or self.limits

    @property
    def inner_values(self) -> tuple[float, ...]:
        """A fractional number inside a range of floats, to test if the key accepts fractions; empty otherwise."""
        if self.quniform:
            return (self.quniform[0] + self.quniform[2],)
        low, high = self.uniform or self.loguniform or (0.0, 0.0)
        return (low + (high - low) / math.pi,) if high > low else ()

    @property
    def limits(self) -> tuple[Any, Any]:
        """Ends of a range, both included."""
        ends = self.uniform or self.loguniform or self.quniform or self.randint
        assert ends
        return ends[0], ends[1]

    def contains(self, value: Any) -> bool:
        """Return True if a value is in the domain."""
        if self.finite:
            return value in self.values
        inside = isinstance(value, int | float) and self.limits[0] <= value <= self.limits[1]
        return inside and self._on_grid(value) == value

    def draw(self, generator: np.random.Generator) -> Any:
        """Draw a value at random."""
        if self.finite:
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.limits
        if self.loguniform:
            return float(math.exp(generator.uniform(math.log(low), math.log(high))))
        if self.randint:
            return int(generator.integers(low, high, endpoint=True))
        return self._on_grid(float(generator.uniform(low, high)))

    def perturbed(self, value: Any, generator: np.random.Generator) -> Any:
        """Return a value near another (Jaderberg et al., 2017): times 0.8 or 1.2, or a neighbour in the list."""
        up = bool(generator.integers(2))
        if self.finite:
            index = self.values.index(value) + (1 if up else -1)
            return self.values[min(max(index, 0), len(self.values) - 1)]
        low, high = self.limits
        near = min(max(value * (1.2 if up else 0.8), low), high)
        return round(near) if self.randint else self._on_grid(near)

    def _on_grid(self, value: float) -> float:
        if not self.quniform:
            return value
        low, high, step = self.quniform
        steps = min(round((value - low) / step), math.floor((high - low) / step + 1e-9))
        return float(f"{low + steps * step:.12g}")


class Scheduler(Section):
    """Early stopping of trials, or population-based training."""

    kind: Literal["asha", "fifo", "median", "pbt"] = "asha"
    """Scheduler. `asha` (arXiv:1810.05934) stops all but the best trials at each rung. `median` (Golovin et al., 2017)
    stops a trial whose best value is worse than the median of the means of the others. `fifo` stops no trial. `pbt`
    (arXiv:1711.09846, population-based training) lets the worst quarter continue from the weights of the best quarter,
    with perturbed settings."""
    grace_period: Annotated[float, Field(gt=0.0, le=1e9)] = 1.0
    """Epochs that every trial runs at least; the first rung of `asha`."""
    reduction_factor: Annotated[float, Field(gt=1.0, le=1e9)] = 3.0
    """Reduction factor r of `asha`: one in r trials passes a rung, and the next rung comes after r times as many
    epochs."""
    brackets: Count = 1
    """Brackets of `asha`. With more than one, some trials start at a later rung."""
    perturb_every: Annotated[float, Field(gt=0.0, le=1e9)] = 1.0
    """Epochs between two perturbations of a trial, for `pbt`."""


class Tune(Section):
    """Search over settings of the run file with `txclf tune`. `txclf train` ignores this section."""

    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 16
    """Number of trials. `search: grid` ignores it and runs one trial per combination."""
    metric: Monitor | None = None
    """Validation metric that ranks trials, each at its best validation: one of the values of `train.monitor`. It
    replaces `train.monitor` in every trial. null takes `train.monitor`."""
    mode: Literal["min", "max"] | None = None
    """Direction of `metric`: `min` if lower is better, `max` if higher is. null takes `min` for losses and `max` for
    the others; the opposite is an error."""
    time: Duration | None = None
    """Time after which the trials stop, as in `30m`; the best model so far is bundled. It counts from the first trial.
    `--resume` continues the search for the same time again. null runs all trials to their end."""
    max_concurrent: Count | Literal["auto"] = "auto"
    """Trials that run at the same time. `auto` runs as many as the cluster has room for; where an
    autoscaler starts nodes, it asks for those of all trials, with Optuna of eight."""
    keep_ray_folder: bool = False
    """Keep Ray Tune's own folder of each attempt: `ray/<name>-<attempt>` in the search folder."""
    scheduler: Scheduler = Scheduler()
    search: Literal["random", "grid", "optuna"] = "random"
    """Search algorithm. `random` draws settings at random, `grid` runs every combination of `choice` and `grid` values,
    and `optuna` uses its TPE sampler (Bergstra et al., 2011), which learns from earlier trials."""
    points_to_evaluate: Annotated[tuple[Settings, ...], BeforeValidator(_listed)] = ()
    """Settings to try first: mappings from keys of `space` to values. Keys without a value are drawn. `search: grid`
    ignores them."""
    space: dict[str, Domain] = Field(default_factory=dict)
    """Keys to search, each with its domain. Keys are dotted and are in `seed`, `data`, `tokenizer`, `model`, `train` or
    `distill`, except `train.monitor` and `distill.teacher`."""

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if self.metric and self.mode and self.mode != direction(self.metric):
            raise ValueError(f"`mode: {self.mode}` ranks the worst `{self.metric}` first. Remove `mode`.")
        if self.search == "grid" and (ranges := [key for key, domain in self.space.items() if not domain.finite]):
            raise ValueError(f"`search: grid` cannot search `{ranges[0]}`, a range. Give it a `choice` or `grid`.")
        if self.search == "optuna" and (grids := [key for key, domain in self.space.items() if domain.grid]):
            raise ValueError(f"`search: optuna` chooses values, and `{grids[0]}` is a `grid`. Make it a `choice`.")
        if self.search == "optuna" and self.scheduler.kind == "pbt":
            raise ValueError("`search: optuna` and `scheduler: pbt` both choose settings. Set one of them.")
        for point in self.points_to_evaluate:
            if unknown := set(point) - set(self.space):
                raise ValueError(f"`points_to_evaluate`: `{min(unknown)}` is not a key of `space`. Add it there.")
            for key, value in point.items():
                if not self.space[key].contains(value):
                    raise ValueError(
                        f"`points_to_evaluate`: {value!r} is not among the values of `{key}`. Widen its domain."
                    )
        return self

    @property
    def total(self) -> int:
        """Number of trials."""
        if self.search == "grid":
            return math.prod(len(domain.values) for domain in self.space.values())
        return self.trials

    def drawn(self, number: int, seed: int, attempt: int = 0) -> Settings:
        """Return the settings of a trial, numbered from 0: a point to evaluate, a combination of the grid, or a draw.

        `attempt` gives another draw for the same trial.
        """
        generator = np.random.default_rng([seed, number, attempt])
        settings = {key: domain.draw(generator) for key, domain in self.space.items()}
        listed = [key for key, domain in self.space.items() if domain.grid or self.search == "grid"]
        if listed:
            combinations = list(itertools.product(*(self.space[key].values for key in listed)))
            settings |= dict(zip(listed, combinations[number % len(combinations)], strict=True))
        if self.search != "grid" and number < len(self.points_to_evaluate):
            settings |= self.points_to_evaluate[number]
        return settings

    def perturbed(self, settings: Settings, generator: np.random.Generator) -> Settings:
        """Return settings near others: each value is drawn again with probability 1/4, otherwise perturbed."""
        return {
            key: domain.draw(generator) if generator.random() < 0.25 else domain.perturbed(settings[key], generator)
            for key, domain in self.space.items()
        }

    def probes(self) -> Iterator[tuple[str, Any]]:
        """Yield every key and value that the run file must accept: listed values, the ends of ranges, the points."""
        for key, domain in self.space.items():
            yield from ((key, value) for value in (*domain.values, *domain.inner_values))
        for point in self.points_to_evaluate:
            yield from point.items()
