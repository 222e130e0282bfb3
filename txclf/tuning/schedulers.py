"""Ray Tune's schedulers as searches use them: by epochs, and knowing what was before a resume.

Ray forgets a scheduler's state when the driver dies. Here each is told again what the trials' own logs hold, so that a
rung of ASHA compares with every trial that ever passed it.
"""

from __future__ import annotations

import uuid
from types import SimpleNamespace
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

from txclf.artifacts import trials
from txclf.config.dotted import Settings
from txclf.config.run_config import RunConfig
from txclf.config.search_space import Tune
from txclf.core.errors import ConfigError

Histories = dict[int, list[dict[str, float]]]
"""The validations of each trial so far, by its number."""


def scheduler(run: RunConfig, epochs: int, histories: Histories) -> TrialScheduler:
    """The scheduler of a search. `epochs` is what the longest trial takes."""
    tune, metric = run.tune, trials.metric(run)
    mode = "min" if metric == "valid_loss" else "max"
    if tune.scheduler.kind == "asha":
        return Rungs(tune, metric, mode, epochs, run.seed, histories)
    if tune.scheduler.kind == "median":
        return Median(tune, metric, mode, histories)
    if tune.scheduler.kind == "pbt":
        return Population(run, metric, mode)
    return FIFOScheduler()  # type: ignore[no-untyped-call]


class Rungs(ASHAScheduler):
    """ASHA whose rungs survive a resume. The last epoch is no rung: a trial that came so far is done anyway."""

    def __init__(self, tune: Tune, metric: str, mode: str, epochs: int, seed: int, histories: Histories) -> None:
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
        self.seed, self.histories = seed, histories
        for number in histories:
            self._replay(number, f"before-{number}")

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        number = trial.config["trial"]["number"]
        self._trial_info[trial.trial_id] = self._bracket(number)
        # What it did before the resume counts under its new name.
        for _, recorded in self._bracket(number)._rungs:
            if f"before-{number}" in recorded:
                recorded[trial.trial_id] = recorded.pop(f"before-{number}")

    def _replay(self, number: int, name: str) -> None:
        for entry in self.histories[number]:
            value = self._metric_op * entry[self._metric]  # type: ignore[operator, index]
            self._bracket(number).on_result(SimpleNamespace(trial_id=name), entry["epoch"], value)

    def _bracket(self, number: int) -> Any:
        """By chance, but the same for a trial whenever it is asked."""
        sizes = np.array([len(bracket._rungs) for bracket in self._brackets])
        chances = np.exp(sizes - sizes.max())
        draw = np.random.default_rng([self.seed, number, 2**31]).choice(len(sizes), p=chances / chances.sum())
        return self._brackets[int(draw)]


class Median(MedianStoppingRule):
    """The median stopping rule, which knows the trials before a resume and pauses none."""

    def __init__(self, tune: Tune, metric: str, mode: str, histories: Histories) -> None:
        super().__init__("epoch", metric, mode, grace_period=tune.scheduler.grace_period)
        for number, history in histories.items():
            self._results[f"before-{number}"] = list(history)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        number = trial.config["trial"]["number"]
        before: Any = f"before-{number}"
        if before in self._results:
            self._results[trial] = self._results.pop(before)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Nothing: the last result of a trial says again what the one before said."""

    def _on_insufficient_samples(self, tune_controller: Any, trial: Any, time: float) -> str:
        return TrialScheduler.CONTINUE


class Population(PopulationBasedTraining):
    """Population-based training over run-file keys; a trial keeps its number when it takes over another's weights."""

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

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        number, donor = trial.config["trial"]["number"], trial_to_clone.config["trial"]
        settings = self.run.tune.perturbed(donor["settings"], self.generator)
        takeover = {"id": uuid.uuid4().hex, "epoch": trial_to_clone.last_result["epoch"], "from": donor["number"]}
        return {"trial": {"number": number, "settings": settings, "takeover": takeover}}, {}


class Optuna(Searcher):
    """Optuna's TPE sampler, told of the trials before a resume; settings that do not go together are drawn again."""

    def __init__(self, run: RunConfig, results: list[trials.Result], first: list[trials.Trial], total: int) -> None:
        metric = trials.metric(run)
        mode = "min" if metric == "valid_loss" else "max"
        super().__init__(metric=metric, mode=mode)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.run, self.first, self.total = optuna, run, list(first), total
        self.next = 1 + max((one.trial.number for one in results), default=-1)
        sampler = optuna.samplers.TPESampler(seed=(run.seed + self.next) % 2**32)
        self.study = optuna.create_study(direction="minimize" if mode == "min" else "maximize", sampler=sampler)
        self.distributions = {key: trials.distribution(run.tune, key) for key in run.tune.space}
        self.asked: dict[str, Any] = {}
        self.best: dict[str, float] = {}
        waiting = {trial.number for trial in first}
        self.before = {one.trial.number: one.best for one in results if one.best == one.best}
        for one in results:
            if one.trial.number not in waiting and one.best == one.best:
                self.study.add_trial(self._known(one.trial.settings, one.best))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if self.first:
            trial = self.first.pop(0)
            self.asked[trial_id] = trial.settings
            if trial.number in self.before:
                self.best[trial_id] = self.before[trial.number]
            return {"trial": {"number": trial.number, "settings": trial.settings}}
        if self.next >= self.total:
            return Searcher.FINISHED
        number, self.next = self.next, self.next + 1
        settings = self._settings(number)
        trials.write(self.run.run_folder, trials.Trial(number=number, settings=settings))
        self.asked[trial_id] = settings
        return {"trial": {"number": number, "settings": settings}}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        value, sign = float(result[str(self.metric)]), -1.0 if self.mode == "min" else 1.0
        if sign * value > sign * self.best.get(trial_id, -sign * np.inf):
            self.best[trial_id] = value

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        settings = self.asked.pop(trial_id)
        if result and self.metric in result and "failed" not in result:
            self.on_trial_result(trial_id, result)  # Tune keeps back the one at which it stopped a trial
        if trial_id in self.best:
            self.study.add_trial(self._known(settings, self.best[trial_id]))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' folders hold all there is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def _settings(self, number: int) -> Settings:
        tune = self.run.tune
        if number < len(tune.points_to_evaluate) or any(domain.grid for domain in tune.space.values()):
            return trials.draw(self.run, number)
        for _ in range(trials.MOST_DRAWS):
            asked = self.study.ask(self.distributions)
            params = asked.params
            # Closed at once, for what comes of it is added as a trial of its own, like those before a resume.
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

    def _known(self, settings: Settings, value: float) -> Any:
        params = {key: trials.encoded(self.run.tune, key, each) for key, each in settings.items()}
        return self.optuna.trial.create_trial(params=params, distributions=self.distributions, value=value)
