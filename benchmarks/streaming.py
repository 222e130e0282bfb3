"""Measure the stream of token shards to the workers: memory, disk, rows a second, waiting and resume.

    python benchmarks/streaming.py --rows 1,10,30 --out streaming.json

Makes shards of random tokens, about 40 a row, on the spot (millions of rows; 60 MB of disk each). Every figure is
measured in processes of its own. For each size:

    memory     the whole split in memory, batches made from it by one process
    process    the shuffle windows of one process, read ahead by a thread
    ray        the same on Ray, `--workers` workers; reading tasks share the cores with them

Then, on the largest size, a real `txclf train` of `jobs/seed_classifier.yaml` for `--steps` steps (share of time
waiting for data), and the time to the first step of a resume at 90 % of an epoch, in one process and on Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from txclf._version import __version__
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.data import sampler, shards
from txclf.data.batches import TokenRows
from txclf.data.prepare import prepare
from txclf.data.shards import GROUP_ROWS, Manifest, Shard
from txclf.data.window_reader import LocalWindows, WindowSource
from txclf.training.job import WorkerConfig

SHARD_ROWS = 32 * GROUP_ROWS
CLASSES = 4
RUN_FILE = Path(__file__).parent.parent / "jobs/seed_classifier.yaml"


def tokens_of(rows: int, draw: np.random.Generator) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    lengths = np.clip(draw.lognormal(np.log(36), 0.45, rows), 4, 256).astype(np.int32)
    return draw.integers(4, 16_000, int(lengths.sum())).astype(np.int32), lengths


def write_shard(folder: Path, split: str, number: int, rows: int) -> Shard:
    """Write a shard with the columns that training reads."""
    draw = np.random.default_rng([number, split == "valid"])
    values, lengths = tokens_of(rows, draw)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    labels = draw.integers(0, CLASSES, rows).astype(np.int32)
    table = pa.table({"input_ids": pa.ListArray.from_arrays(offsets, values), "label": labels})
    file = f"{split}/part-{number:05d}.parquet"
    (folder / split).mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table,
        folder / file,
        compression="zstd",
        row_group_size=GROUP_ROWS,
        write_page_checksum=True,
        use_dictionary=False,
    )
    return Shard(
        file=file,
        rows=rows,
        tokens=len(values),
        full_tokens=len(values),
        truncated_rows=0,
        label_counts=np.bincount(labels, minlength=CLASSES).tolist(),
        length_histogram=[0] * len(shards.LENGTH_EDGES),
        group_tokens=np.add.reduceat(lengths.astype(np.int64), np.arange(0, rows, GROUP_ROWS)).tolist(),
    )


def make(folder: Path, tiny: Manifest, rows: int) -> None:
    """Make a prepared folder with this many training rows; what is not about rows is that of a tiny one."""
    splits = {}
    for split, count in (("train", rows), ("valid", 20_000)):
        sizes = [min(SHARD_ROWS, count - first) for first in range(0, count, SHARD_ROWS)]
        parts = [write_shard(folder, split, number, size) for number, size in enumerate(sizes)]
        labels = np.sum([part.label_counts for part in parts], axis=0).tolist()
        splits[split] = tiny.splits[split].model_copy(
            update={
                "shards": parts,
                "rows": count,
                "read": count,
                "tokens": sum(part.tokens for part in parts),
                "label_counts": dict(zip(tiny.labels, labels, strict=True)),
            }
        )
    update: dict[str, Any] = {"splits": splits, "fingerprint": f"streaming-{rows}", "vocab_size": 16_000}
    manifest = tiny.model_copy(update=update)
    storage.write_bytes(str(folder / shards.MANIFEST), manifest.model_dump_json().encode())


class Peak:
    """The peak of the memory that only this process holds, in MB, sampled by a thread."""

    def __init__(self) -> None:
        self.value, self.ended = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self) -> None:
        while not self.ended.wait(0.05):
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
            private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
            self.value = max(self.value, private * 1024 / 1e6)

    def end(self) -> float:
        self.ended.set()
        self.thread.join()
        return round(self.value)


def consume(source: WindowSource, steps: range, rank: int = 0, world: int = 1) -> dict[str, float]:
    """Make the batches of some steps; the rate excludes the time to the first."""
    peak, began, first, done, rows = Peak(), time.perf_counter(), 0.0, 0, 0
    for window in source.train(steps, rank, world):
        for step in window.steps:
            if step < steps.start or step >= steps.stop:
                continue
            for part in window.parts(step, 1):
                rows += len(window.rows.batch(part)["input_ids"])
            done += 1
            if done == 1:
                first = time.perf_counter()
    seconds = time.perf_counter() - first
    return {"rows_per_second": rows / seconds, "first_batch": first - began, "peak_mb": peak.end(), "rows": rows}


def in_memory(config: WorkerConfig, steps: range) -> dict[str, float]:
    """Make the batches of some steps from the whole split in memory."""
    peak, began = Peak(), time.perf_counter()
    manifest, train = config.manifest(), config.run.train
    rows = TokenRows([shards.read_split(config.prepared, manifest, "train", config.columns)])
    plan = sampler.window_batches(
        rows.lengths, train.batch_size, bucket_batches=train.bucket_batches, seed=config.run.seed, epoch=0
    )
    first, done = time.perf_counter(), 0
    for step in steps:
        done += len(rows.batch(plan[step])["input_ids"])
    seconds = time.perf_counter() - first
    return {"rows_per_second": done / seconds, "first_batch": first - began, "peak_mb": peak.end(), "rows": done}


def receive(settings: dict[str, Any]) -> None:
    from ray.train import get_context

    from txclf.training.distributed.ray_data import RayWindows

    context, config = get_context(), settings["config"]
    rank, world = context.get_world_rank(), context.get_world_size()
    found = consume(RayWindows(config), range(settings["steps"]), rank, world)
    Path(settings["out"], f"{rank}.json").write_text(json.dumps(found))


def on_ray(config: WorkerConfig, workers: int, folder: str) -> dict[str, Any]:
    """Make the batches of one epoch on workers of Ray, and measure what Ray keeps in its store and on disk."""
    import ray
    from ray.train import RunConfig as TrainRunConfig
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    from txclf import ray_cluster
    from txclf.training.distributed import ray_data

    run = run_config.with_overrides(config.run, {"compute.workers": workers})
    scratch, stored, disk, ended = Path(folder), [0.0], [0.0], threading.Event()
    peak = Peak()
    with ray_cluster.connected(run.compute):
        session = Path(ray._private.worker._global_node.get_session_dir_path())

        def sample() -> None:
            while not ended.wait(1.0):
                total = ray.cluster_resources()["object_store_memory"]
                stored.append((total - ray.available_resources().get("object_store_memory", 0.0)) / 1e6)
                disk.append(sum(path.stat().st_size for path in session.rglob("*") if path.is_file()) / 1e6)

        threading.Thread(target=sample, daemon=True).start()
        TorchTrainer(
            receive,
            train_loop_config={"config": config, "steps": config.train_reader().windows.steps_per_epoch, "out": folder},
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1 / workers}),
            run_config=TrainRunConfig(name="streaming", storage_path=str(scratch / "ray")),
            datasets=ray_data.datasets(config),
            dataset_config=ray_data.WindowsDataConfig(config),
        ).fit()
        ended.set()
    each = [json.loads((scratch / f"{rank}.json").read_text()) for rank in range(workers)]
    return {
        "rows_per_second": sum(one["rows_per_second"] for one in each),
        "first_batch": max(one["first_batch"] for one in each),
        "peak_mb": max(one["peak_mb"] for one in each),
        "driver_mb": peak.end(),
        "store_mb": round(max(stored)),
        "disk_mb": round(max(disk) - min(disk[1:2] or [0.0])),
        "rows": sum(one["rows"] for one in each),
    }


def trained(run: RunConfig, prepared: str, steps: int) -> dict[str, Any]:
    """Train some steps of a run for real and return the share of time that it waited for data."""
    from txclf.training.progress import Interrupted
    from txclf.training.train import train

    began = time.time()
    with suppress(Interrupted):
        train(run, prepared, lambda progress: progress.step >= steps, started=began)
    lines = [json.loads(line) for line in Path(run.run_folder, "metrics.jsonl").read_text().splitlines()]
    attempt = json.loads(Path(run.run_folder, "attempts.jsonl").read_text().splitlines()[-1])
    waits = [line["data_share"] for line in lines if "data_share" in line and line["step"] > attempt["step"]]
    return {"data_share": float(np.mean(waits[1:] or waits)), "begin": attempt["time"] - began}


def resumed(run: RunConfig, prepared: str) -> dict[str, float]:
    """Move the last checkpoint of a run to 90 % of an epoch and return the seconds to the first step from there."""
    from txclf.artifacts import checkpoints
    from txclf.training.progress import Interrupted
    from txclf.training.train import train

    folder = storage.join(run.run_folder, "checkpoints")
    saved = checkpoints.committed(folder)[-1]
    state = checkpoints.load(saved)
    step = int(0.9 * WorkerConfig(run, prepared).train_reader().windows.steps_per_epoch)
    if saved.step < step:
        state |= {"step": step, "unlogged": {**state["unlogged"], "step": step}}
        checkpoints.save(folder, step, {}, state)
    began, first = time.time(), [0.0]

    def watch(progress: Any) -> bool:
        if progress.step > step and not first[0]:
            first[0] = time.time()
        return progress.step > step

    with suppress(Interrupted):
        train(run, prepared, watch, started=began)
    return {"seconds": first[0] - began, "step": step}


def child(arguments: dict[str, Any]) -> dict[str, Any]:
    """Measure one figure in this process."""
    words = [f"storage={arguments['folder']}", f"name={arguments['name']}", f"data.train={arguments['data']}"]
    run = run_config.load(str(RUN_FILE), [*words, *arguments.get("words", [])])
    config = WorkerConfig(run, arguments["prepared"])
    mode = arguments["mode"]
    if mode == "memory":
        return in_memory(config, range(min(8000, config.train_reader().windows.steps_per_epoch)))
    if mode == "process":
        source = LocalWindows(config.train_reader(), {})
        return consume(source, range(config.train_reader().windows.steps_per_epoch))
    if mode == "ray":
        return on_ray(config, arguments["workers"], arguments["folder"])
    if mode == "train":
        return trained(run, arguments["prepared"], arguments["steps"])
    return resumed(run, arguments["prepared"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,10,30", help="millions of training rows of each size")
    parser.add_argument("--workers", type=int, default=1, help="workers on Ray")
    parser.add_argument("--modes", default="memory,process,ray")
    parser.add_argument("--steps", type=int, default=40, help="steps of the real training; 0 for none")
    parser.add_argument("--folder", help="for the data; kept")
    parser.add_argument("--out", default="streaming.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print("RESULT" + json.dumps(child(json.loads(chosen.child))))
        return
    folder = Path(chosen.folder or tempfile.mkdtemp(prefix="txclf-streaming-"))
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "tiny.csv"
    data.write_text("text,label\n" + "".join(f"word{row % 50} word{row % 7},{row % CLASSES}\n" for row in range(400)))
    tiny = prepare(run_config.load(str(RUN_FILE), [f"storage={folder}", f"data.train={data}", "data.test=null"]))

    def measure(**arguments: Any) -> dict[str, Any]:
        settings = {"folder": str(folder), "data": str(data), "name": "run", **arguments}
        words = [sys.executable, __file__, "--child", json.dumps(settings)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        found: dict[str, Any] = json.loads(line.removeprefix("RESULT"))
        print({key: value for key, value in arguments.items() if key != "prepared"}, found, flush=True)
        return found

    results: list[dict[str, Any]] = []
    prepared = ""
    for millions in map(float, chosen.rows.split(",")):
        rows = int(millions * 1e6)
        prepared = str(folder / "prepared" / f"streaming-{rows}")
        if not Path(prepared, shards.MANIFEST).exists():
            shutil.copytree(tiny, prepared, ignore=shutil.ignore_patterns("*.parquet", shards.MANIFEST))
            make(Path(prepared), shards.load_manifest(tiny), rows)
        for mode in chosen.modes.split(","):
            words = ["data.test=null"]
            found = measure(mode=mode, prepared=prepared, workers=chosen.workers, words=words)
            results.append({"rows": rows, "mode": mode, **found})
    for compute in (["compute.workers=0"], [f"compute.workers={chosen.workers}"]) if chosen.steps else ():
        name = f"train-{compute[0][-1]}-{os.getpid()}"
        words = [*compute, "data.test=null", "train.log_every_steps=5", "train.stall_timeout_s=600"]
        for mode in ("train", "resume"):
            found = measure(mode=mode, prepared=prepared, name=name, words=words, steps=chosen.steps)
            results.append({"mode": mode, "compute": compute[0], **found})
    Path(chosen.out).write_text(json.dumps({"version": __version__, "results": results}, indent=2) + "\n")
    if not chosen.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
