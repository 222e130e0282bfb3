"""Which settings a resumed run may change, and a finished run that is resumed for more epochs.

`train.epochs` may grow. The learning-rate schedule is then that of the longer run: from the checkpoint on, a step has
the rate that it would have had if the run had begun with so many epochs.
"""

from __future__ import annotations

from typing import Any

from txclf.config import recipes, run_config
from txclf.config.dotted import Settings, changed, flatten_dotted
from txclf.config.run_config import RunConfig
from txclf.config.train import Train
from txclf.core import storage
from txclf.core.errors import ConfigError

EPOCHS = "train.epochs"
CHANGEABLE = ("checkpoint_every", "on_nan", "stall_timeout_s", "log_every_steps", "trackers", "micro_batches")
"""Keys of `train` that a resumed run may change."""
OUTDATED = ("summary.json", "metrics.json", "metrics-data.json", "drift.json", "curve/curve.json", "report.html")
"""Files of a finished run that are out of date once it trains on. The first marks it as finished."""
LOG, OWN_LOG = "metrics.jsonl", "own-metrics.jsonl"


def as_resumed(run: RunConfig, saved: RunConfig) -> RunConfig:
    """Return a run with what its `saved` run file settled; with the saved epochs and monitor if the run sets none."""
    set_keys = run.train.model_dump(exclude_unset=True, exclude={"epochs"})
    settled = recipes.as_begun(run.model_copy(update={"train": Train(**set_keys)}), saved)
    source = {key: run if key in run.train.model_fields_set else saved for key in ("epochs", "monitor")}
    kept = {key: getattr(one.train, key) for key, one in source.items()}
    return settled.model_copy(update={"train": settled.train.model_copy(update=kept)})


def require_kept(run: RunConfig, saved: RunConfig, path: str) -> None:
    """Raise `ConfigError` that names the keys of a run, begun as `saved` at `path`, that a resume may not change."""
    was, now = _kept(saved), _kept(as_resumed(run, saved))
    found = changed(was, now)
    only_epochs = list(found) == [EPOCHS]
    if only_epochs and now[EPOCHS] > was[EPOCHS]:
        return
    if found:
        values, more = ", ".join(found.values()), " `train.epochs` may only grow." if only_epochs else ""
        raise ConfigError(
            f"`{path}` differs in {values}.{more} Pass the settings of the run, or choose another `name`."
        )


def is_begun_otherwise(run: RunConfig) -> bool:
    """Return True if the folder of a run was begun with other settings, or another number of epochs."""
    path = storage.join(run.run_folder, "run.yaml")
    if not storage.exists(path):
        return False
    saved = run_config.load(path)
    return bool(changed(_kept(saved), _kept(as_resumed(run, saved))))


def _kept(run: RunConfig) -> Settings:
    """Return the settings that a resumed run must keep: all but where it runs and how it handles failures."""
    sections: dict[str, Any] = run.model_dump(
        include={"seed", "task", "data", "tokenizer", "model", "train", "distill"}
    )
    for key in CHANGEABLE:
        del sections["train"][key]
    return flatten_dotted(sections)


def extends(run: RunConfig, saved: RunConfig) -> bool:
    """Return True if a run is resumed for more epochs than it was begun with."""
    return as_resumed(run, saved).train.epochs > saved.train.epochs


def require_extendable(summary: dict[str, Any]) -> None:
    """Raise `ConfigError` if a finished run stopped early, because then it would stop again at once."""
    if summary["stopped_early"]:
        raise ConfigError(
            f"`{EPOCHS}`: the run stopped early after {summary['epochs']:.2f} epochs, so more train nothing. Start "
            "a new run with a larger `train.early_stopping_patience`."
        )


def replace_log(folder: str, other: str) -> None:
    """Put the log of the run in the folder `other` in place of a finished run's own, which is kept for more epochs."""
    log, own = storage.join(folder, LOG), storage.join(folder, OWN_LOG)
    if not storage.exists(own):
        storage.write_bytes(own, storage.read_bytes(log))
    storage.write_bytes(log, storage.read_bytes(storage.join(other, LOG)))


def _restore_log(folder: str) -> None:
    log, own = storage.join(folder, LOG), storage.join(folder, OWN_LOG)
    if storage.exists(own):
        storage.write_bytes(log, storage.read_bytes(own))
        storage.remove_file(own)


def extend(run: RunConfig) -> None:
    """Write the new number of epochs to `run.yaml`; a finished run becomes an unfinished one first.

    The lease of the run folder must be held.
    """
    path = storage.join(run.run_folder, "run.yaml")
    saved = run_config.load(path)
    if extends(run, saved):
        for name in OUTDATED:
            storage.remove_file(storage.join(run.run_folder, name))
        _restore_log(run.run_folder)
        train = saved.train.model_copy(update={"epochs": run.train.epochs})
        storage.write_bytes(path, run_config.dump(saved.model_copy(update={"train": train})).encode())
