"""Ray Tune's schedulers and searcher, by epochs and with the history of a resumed search.

Ray loses a scheduler's state when the driver dies. These schedulers are refilled from the trials' own logs, so that a
rung of ASHA compares a trial with every trial that ever passed it.
"""

from __future__ import annotations

import math
import uuid
from typing import Any

import numpy as np
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher

from txclf import upstream
from txclf.artifacts import trials
from txclf.config.base import direction
from txclf.config.dotted import Settings
from txclf.config.run_config import RunConfig
from txclf.config.search_space import Tune
from txclf.core import lease
from txclf.core.errors import ConfigError

Histories = dict[int, list[dict[str, float]]]
"""Validations of each trial before the resume, by trial number."""


def scheduler(run: RunConfig, epochs: int, histories: Histories) -> TrialScheduler:
    """Return the scheduler of a search. `epochs` is the length of the longest trial."""
    tune, metric = run.tune, trials.metric(run)
    mode = direction(metric)
    if tune.scheduler.kind == "asha":
        return Asha(tune, metric, mode, epochs=epochs, seed=run.seed, histories=histories)
    if tune.scheduler.kind == "median":
        return Median(tune, metric, mode, histories)
    if tune.scheduler.kind == "pbt":
        return Population(run, metric, mode)
    return FIFOScheduler()  # type: ignore[no-untyped-call]


class Asha(upstream.ReplayableBrackets, ASHAScheduler):
    """ASHA (arXiv:1810.05934) whose rungs survive a resume.

    The last epoch is no rung, because a trial that reaches it is finished anyway.
    """

    def __init__(self, tune: Tune, metric: str, mode: str, *, epochs: int, seed: int, histories: Histories) -> None:
        scheduler = tune.scheduler
        super().__init__(
            "epoch",
            metric,
            mode,
            max_t=max(scheduler.grace_period, epochs * 0.999),  # type: ignore[arg-type]
            grace_period=scheduler.grace_period,  # type: ignore[arg-type]
            reduction_factor=scheduler.reduction_factor,
            brackets=scheduler.brackets,
            stop_last_trials=False,
        )
        self.seed = seed
        for number, history in histories.items():
            for entry in history:
                self.record(_earlier(number), self._bracket(number), entry["epoch"], entry)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Put a trial into its bracket and adopt its validations before the resume."""
        number = trial.config["trial"]["number"]
        self.assign(trial.trial_id, self._bracket(number))
        self.rename(self._bracket(number), _earlier(number), trial.trial_id)

    def _bracket(self, number: int) -> int:
        """Draw the bracket of a trial; the same one at every call."""
        sizes = np.array(self.bracket_sizes)
        weights = np.exp(sizes - sizes.max())
        generator = np.random.default_rng([self.seed, number, 2**31])
        return int(generator.choice(len(sizes), p=weights / weights.sum()))


class Median(upstream.ReplayableMedian, MedianStoppingRule):
    """The median stopping rule, refilled with the validations before a resume."""

    def __init__(self, tune: Tune, metric: str, mode: str, histories: Histories) -> None:
        super().__init__("epoch", metric, mode, grace_period=tune.scheduler.grace_period)
        for number, history in histories.items():
            self.record_all(_earlier(number), history)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial and adopt its validations before the resume."""
        super().on_trial_add(tune_controller, trial)
        self.rename(_earlier(trial.config["trial"]["number"]), trial)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Ignore the last result of a trial, which repeats the one before."""


class Population(upstream.ExploringPopulation, PopulationBasedTraining):
    """Population-based training (arXiv:1711.09846) over run-file keys.

    A trial keeps its number when it takes over another trial's weights.
    """

    def __init__(self, run: RunConfig, metric: str, mode: str) -> None:
        super().__init__(
            "epoch",
            metric,
            mode,
            perturbation_interval=run.tune.scheduler.perturb_every,
            burn_in_period=run.tune.scheduler.grace_period,
            custom_explore_fn=lambda config: config,
            log_config=False,
        )
        self.run, self.generator = run, np.random.default_rng([run.seed, 2**31 + 1])

    def explore(self, trial: Any, donor: Any) -> dict[str, Any]:
        """Return the config of a trial that takes over a donor's checkpoint: the donor's settings, perturbed."""
        number, source = trial.config["trial"]["number"], donor.config["trial"]
        settings = self.run.tune.perturbed(source["settings"], self.generator)
        takeover = {"id": uuid.uuid4().hex, "epoch": donor.last_result["epoch"], "from": source["number"]}
        return {"trial": {"number": number, "settings": settings, "takeover": takeover}}


def _earlier(number: int) -> str:
    """Return the id under which a trial's validations before a resume are recorded."""
    return f"before-{number}"


class Optuna(Searcher):
    """Optuna's TPE sampler (arXiv:1907.10902) with the trials before a resume.

    `pending` are trials whose settings are drawn already. Settings that the run file's checks refuse are drawn again.
    """

    def __init__(self, run: RunConfig, results: list[trials.Result], pending: list[trials.Trial], total: int) -> None:
        metric = trials.metric(run)
        mode = direction(metric)
        super().__init__(metric=metric, mode=mode)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.run, self.pending, self.total = optuna, run, list(pending), total
        self.next = 1 + max((result.trial.number for result in results), default=-1)
        sampler = optuna.samplers.TPESampler(seed=(run.seed + self.next) % 2**32)
        self.study = optuna.create_study(direction="minimize" if mode == "min" else "maximize", sampler=sampler)
        self.distributions = {key: trials.distribution(run.tune, key) for key in run.tune.space}
        self.asked: dict[str, Any] = {}
        self.best: dict[str, float] = {}
        numbers = {trial.number for trial in pending}
        self.best_before = {result.trial.number: result.best for result in results if not math.isnan(result.best)}
        for result in results:
            if result.trial.number not in numbers and not math.isnan(result.best):
                self.study.add_trial(self._completed(result.trial.settings, result.best))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the config of the next trial: a pending one, or new settings of the sampler."""
        if self.pending:
            trial = self.pending.pop(0)
            self.asked[trial_id] = trial.settings
            if trial.number in self.best_before:
                self.best[trial_id] = self.best_before[trial.number]
            return {"trial": {"number": trial.number, "settings": trial.settings}}
        if self.next >= self.total:
            return Searcher.FINISHED
        number, self.next = self.next, self.next + 1
        settings = self._settings(number)
        lease.require(self.run.run_folder)
        trials.write(self.run.run_folder, trials.Trial(number=number, settings=settings))
        self.asked[trial_id] = settings
        return {"trial": {"number": number, "settings": settings}}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep the best validation of a trial."""
        value, sign = float(result[str(self.metric)]), -1.0 if self.mode == "min" else 1.0
        if sign * value > sign * self.best.get(trial_id, -sign * np.inf):
            self.best[trial_id] = value

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Add a trial with its best validation to the study."""
        settings = self.asked.pop(trial_id)
        if result and self.metric in result and "failed" not in result:
            self.on_trial_result(trial_id, result)  # Tune passes the result at which it stopped a trial here only
        if trial_id in self.best:
            self.study.add_trial(self._completed(settings, self.best[trial_id]))

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, because the trials' folders hold the whole state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, because the trials' folders hold the whole state."""

    def _settings(self, number: int) -> Settings:
        tune = self.run.tune
        if number < len(tune.points_to_evaluate):
            return trials.draw(self.run, number)
        for _ in range(trials.MAX_DRAWS):
            asked = self.study.ask(self.distributions)
            params = asked.params
            # Closed at once: its result is added as a trial of its own, like the trials before a resume.
            self.study.tell(asked, state=self.optuna.trial.TrialState.FAIL)
            settings = {
                key: tune.space[key].values[value] if tune.space[key].finite else value for key, value in params.items()
            }
            try:
                trials.run_of(self.run, number, settings)
            except ConfigError:
                continue
            return settings
        return trials.draw(self.run, number)

    def _completed(self, settings: Settings, value: float) -> Any:
        params = {key: trials.encoded(self.run.tune, key, each) for key, each in settings.items()}
        return self.optuna.trial.create_trial(params=params, distributions=self.distributions, value=value)
