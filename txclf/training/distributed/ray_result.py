"""The `Result` of Ray Train for a run, read from its run folder."""

from __future__ import annotations

import pandas as pd
from ray.train import Checkpoint, Result

from txclf.artifacts import checkpoints, run_folder
from txclf.core import storage
from txclf.core.errors import ConfigError


def ray_result(folder: str) -> Result:
    """Return a run as Ray Train's `Result`, during the run or after it.

    Ray keeps a list of the checkpoints that were reported to it. Here `best_checkpoints` holds those that still exist,
    by step, and `metrics_dataframe` holds every validation. Raises `ConfigError` if the folder is not a run.
    """
    if run_folder.kind(folder) != "run":
        raise ConfigError(f"`{folder}`: not a run folder. Pass the folder of a run, which holds `run.yaml`.")
    state = run_folder.read_run(folder)
    validations = [{key: value for key, value in line.items() if key != "valid_rows"} for line in state.validations]
    by_step = {int(line["step"]): line for line in validations}
    saved = [(each.step, _checkpoint(each)) for each in checkpoints.committed(storage.join(folder, "checkpoints"))]
    return Result(
        metrics=validations[-1] if validations else None,
        checkpoint=saved[-1][1] if saved else None,
        error=None,
        path=state.folder,
        metrics_dataframe=pd.DataFrame(validations),
        best_checkpoints=[(checkpoint, by_step[step]) for step, checkpoint in saved if step in by_step],
    )


def _checkpoint(saved: checkpoints.Checkpoint) -> Checkpoint:
    filesystem, path = storage.resolve(saved.path)
    return Checkpoint(path, filesystem)
