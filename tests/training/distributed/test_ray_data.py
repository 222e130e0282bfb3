"""The streams of a run on Ray have the rows of one process."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from ray.train import RunConfig as TrainRunConfig
from ray.train import ScalingConfig, get_context
from ray.train.torch import TorchTrainer

import txclf
from tests.helpers.runs import stopped_at, tiny
from txclf.artifacts import checkpoints
from txclf.data.batches import TokenRows
from txclf.data.window_reader import LocalWindows
from txclf.training.distributed import ray_data
from txclf.training.distributed.ray_data import RayWindows, WindowsDataConfig
from txclf.training.job import WorkerConfig

WORDS = ["data.shuffle_window=1000", "train.token_dropout=0.2", "train.epochs=3"]


def receive(settings: dict[str, object]) -> None:
    """Write the numbers of the rows of every step that this rank receives, and of its validation rows, twice."""
    config = settings["config"]
    assert isinstance(config, WorkerConfig)
    rank, world_size = get_context().get_world_rank(), get_context().get_world_size()
    source = RayWindows(config)
    found: dict[str, list[int]] = {}
    steps = range(int(str(settings["start"])), config.run.train.epochs * config.train_reader().windows.steps_per_epoch)
    for window in source.train(steps, rank, world_size):
        assert isinstance(window.rows, TokenRows)
        for step in window.steps:
            (part,) = window.parts(step, 1)
            found[str(step)] = window.rows.numbers[part].tolist()
    for name in ("first", "second"):
        rows = [rows for rows in source.scoring("valid", rank, world_size) if isinstance(rows, TokenRows)]
        found[name] = [number for part in rows for number in part.numbers.tolist()]
    Path(str(settings["folder"]), f"{rank}.pickle").write_bytes(pickle.dumps(found))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.faults), 3])
def test_streams_have_the_rows_of_one_process(tmp_path: Path, data: str, local_ray: None, workers: int) -> None:
    run = tiny(tmp_path, data, *WORDS)
    stopped_at(run, 20)
    config = WorkerConfig(run, txclf.prepare(run))
    (saved,) = checkpoints.committed(f"{run.run_folder}/checkpoints")[-1:]
    TorchTrainer(
        receive,
        train_loop_config={"config": config, "start": saved.step, "folder": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1 / workers}),
        run_config=TrainRunConfig(name="streams", storage_path=str(tmp_path / "ray")),
        datasets=ray_data.datasets(config),
        dataset_config=WindowsDataConfig(config),
    ).fit()
    found = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(workers)]
    reader = config.train_reader()
    total = run.train.epochs * reader.windows.steps_per_epoch
    steps = 0
    for window in LocalWindows(reader, {}).train(range(saved.step, total), 0, 1):
        assert isinstance(window.rows, TokenRows)
        for step in window.steps:
            (part,) = window.parts(step, 1)
            for rank in range(workers):
                assert found[rank][str(step)] == window.rows.numbers[part][rank::workers].tolist()
            steps += 1
    # The stream begins in the window of the checkpoint.
    assert (
        min(int(step) for step in found[0] if step.isdigit())
        == reader.windows.steps(reader.windows.window_of(saved.step))[0]
    )
    assert total - saved.step <= steps < total
    rows = config.manifest().splits["valid"].rows
    for name in ("first", "second"):
        assert sorted(number for own in found for number in own[name]) == list(range(rows))
