"""The `tune` section of the run file: what a search searches, and how.

    tune:
      trials: 16
      scheduler: {kind: asha, grace_period: 1, reduction_factor: 3}
      space:
        train.learning_rate: {loguniform: [1e-4, 1e-2]}
        model.num_layers: {choice: [1, 2, 4]}

Every draw is a function of (seed, number of the trial), so a search that is resumed or extended draws what it would
have drawn anyway.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_serializer, model_validator

from txclf.config.dotted import Settings
from txclf.config.sections import Monitor, Section

Values = Annotated[tuple[Any, ...], Field(min_length=1)]


class Domain(Section):
    """The values that a key may take: exactly one of the keys below."""

    choice: Values | None = None
    """One of these values, drawn evenly."""
    grid: Values | None = None
    """These values in turn, so that every combination of `grid` keys comes equally often."""
    uniform: tuple[float, float] | None = None
    """A number between two others."""
    loguniform: tuple[float, float] | None = None
    """A number between two others, its logarithm drawn evenly."""
    quniform: tuple[float, float, Annotated[float, Field(gt=0.0)]] | None = None
    """`[low, high, step]`: low, low + step, … up to high."""
    randint: tuple[int, int] | None = None
    """A whole number from low to high, both included."""

    @model_validator(mode="after")
    def _one_kind_in_order(self) -> Self:
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            raise ValueError(f"expected one of {', '.join(type(self).model_fields)}, as in `{{uniform: [0, 0.3]}}`")
        if not self.finite:
            low, high = self.limits
            if low >= high:
                raise ValueError(f"`{self.kind}: [{low:g}, {high:g}]`: expected the lower, then the higher")
            if self.loguniform and low <= 0:
                raise ValueError(f"`loguniform: [{low:g}, {high:g}]`: the logarithm of {low:g} is not a number")
        return self

    @property
    def kind(self) -> str:
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @model_serializer
    def _given(self) -> dict[str, Any]:
        return {self.kind: list(getattr(self, self.kind))}

    @property
    def finite(self) -> bool:
        """Whether the values are listed."""
        return self.kind in ("choice", "grid")

    @property
    def values(self) -> tuple[Any, ...]:
        """The listed values; of a range its ends."""
        return self.choice or self.grid or self.limits

    @property
    def within(self) -> tuple[float, ...]:
        """A number within a range that is no whole one: a key of whole numbers refuses it."""
        if self.quniform:
            return (self.quniform[0] + self.quniform[2],)
        low, high = self.uniform or self.loguniform or (0.0, 0.0)
        return (low + (high - low) / math.pi,) if high > low else ()

    @property
    def limits(self) -> tuple[Any, Any]:
        """The ends of a range."""
        ends = self.uniform or self.loguniform or self.quniform or self.randint
        assert ends
        return ends[0], ends[1]

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them."""
        if self.finite:
            return value in self.values
        inside = isinstance(value, int | float) and self.limits[0] <= value <= self.limits[1]
        return inside and self._on_grid(value) == value

    def draw(self, generator: np.random.Generator) -> Any:
        """A value by chance."""
        if self.finite:
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.limits
        if self.loguniform:
            return float(math.exp(generator.uniform(math.log(low), math.log(high))))
        if self.randint:
            return int(generator.integers(low, high, endpoint=True))
        return self._on_grid(float(generator.uniform(low, high)))

    def perturbed(self, value: Any, generator: np.random.Generator) -> Any:
        """A value near another (Jaderberg et al., 2017): times 0.8 or 1.2, or its neighbour in a list."""
        up = bool(generator.integers(2))
        if self.finite:
            place = self.values.index(value) + (1 if up else -1)
            return self.values[min(max(place, 0), len(self.values) - 1)]
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
    """When a trial is stopped before its end, or goes on from another's weights."""

    kind: Literal["asha", "fifo", "median", "pbt"] = "asha"
    """`asha` (arXiv:1810.05934) stops all but the best share at each rung; `median` (Golovin et al., 2017) stops a
    trial whose best is worse than the median of the others' means; `fifo` stops none; `pbt` (arXiv:1711.09846) lets the
    worst quarter go on from the weights of the best quarter, with perturbed settings."""
    grace_period: Annotated[float, Field(gt=0.0)] = 1.0
    """Epochs that every trial gets; the first rung of `asha`."""
    reduction_factor: Annotated[float, Field(gt=1.0)] = 3.0
    """Of `asha`: one in so many trials passes a rung, and the next rung is so many times as far."""
    brackets: Annotated[int, Field(ge=1)] = 1
    """Of `asha`: with more than one, some trials begin at a later rung."""
    perturb_every: Annotated[float, Field(gt=0.0)] = 1.0
    """Of `pbt`: epochs between two looks at a trial."""


class Tune(Section):
    """A search over settings of the run file, by `txclf tune`."""

    trials: Annotated[int, Field(ge=1)] = 16
    """Trials in all; `search: grid` runs as many as there are combinations."""
    metric: Monitor | None = None
    """What trials are compared by, each at its best validation; null = `train.monitor`. It takes the place of
    `train.monitor` in every trial."""
    mode: Literal["min", "max"] | None = None
    """Whether less or more of it is better; null = `min` for a loss, else `max`."""
    max_concurrent: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Trials at a time; `auto` = as many as the cluster has room for."""
    scheduler: Scheduler = Scheduler()
    search: Literal["random", "grid", "optuna"] = "random"
    """Where settings come from: by chance, every combination of `choice` and `grid` values, or Optuna's TPE
    (Bergstra et al., 2011), which learns from the trials before."""
    points_to_evaluate: tuple[Settings, ...] = ()
    """Settings to try first, each with a value for some keys or all; the rest is drawn."""
    space: dict[str, Domain] = Field(default_factory=dict)
    """The keys to search, dotted, each with its values."""

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        if self.metric and self.mode and self.mode != ("min" if self.metric == "valid_loss" else "max"):
            raise ValueError(f"`mode: {self.mode}` of `{self.metric}` looks for the worst: leave `mode` out")
        if self.search == "grid" and (ranges := [key for key, domain in self.space.items() if not domain.finite]):
            raise ValueError(f"`search: grid` needs `choice` or `grid`, but `{ranges[0]}` is a range")
        if self.search == "optuna" and self.scheduler.kind == "pbt":
            raise ValueError("`search: optuna` and `scheduler: pbt` both choose settings: take one of them")
        for point in self.points_to_evaluate:
            if unknown := set(point) - set(self.space):
                raise ValueError(f"`points_to_evaluate`: `{min(unknown)}` is not a key of `space`")
            for key, value in point.items():
                if not self.space[key].holds(value):
                    raise ValueError(f"`points_to_evaluate`: {value!r} is not among the values of `{key}`")
        return self

    @property
    def total(self) -> int:
        """Number of trials."""
        if self.search == "grid":
            return math.prod(len(domain.values) for domain in self.space.values())
        return self.trials

    def drawn(self, number: int, seed: int, attempt: int = 0) -> Settings:
        """The settings of a trial, counted from 0: a point, a combination of the grid, or by chance."""
        generator = np.random.default_rng([seed, number, attempt])
        settings = {key: domain.draw(generator) for key, domain in self.space.items()}
        listed = [key for key, domain in self.space.items() if domain.grid or self.search == "grid"]
        if listed:
            combinations = list(itertools.product(*(self.space[key].values for key in listed)))
            settings |= dict(zip(listed, combinations[number % len(combinations)], strict=True))
        return settings | (
            self.points_to_evaluate[number] if number < len(self.points_to_evaluate) and self.search != "grid" else {}
        )

    def perturbed(self, settings: Settings, generator: np.random.Generator) -> Settings:
        """Settings near others: each drawn anew with probability 1/4, else perturbed."""
        return {
            key: domain.draw(generator) if generator.random() < 0.25 else domain.perturbed(settings[key], generator)
            for key, domain in self.space.items()
        }

    def probes(self) -> Iterator[tuple[str, Any]]:
        """Every value that has to be one that the run file takes: those listed, the ends of ranges, the points."""
        for key, domain in self.space.items():
            yield from ((key, value) for value in (*domain.values, *domain.within))
        for point in self.points_to_evaluate:
            yield from point.items()
