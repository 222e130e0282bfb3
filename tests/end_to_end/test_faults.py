"""Real faults of a run: killed and stopped processes, lost and disconnected nodes, full disks.

Each run must end as if nothing had happened, to the last bit where the number of workers is the same; the figures of
docs/ray/faults.md are printed by these tests (`make test-faults`).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.ray_processes import workers_of_ray
from tests.helpers.runs import TINY, go_on, lines, losses, prepare_here, tiny, trained
from tests.helpers.testbed import Node, Testbed, namespaces_work
from tests.helpers.waiting import PATIENCE_S, wait_until
from txclf.artifacts import attempts, checkpoints
from txclf.config.run_config import RunConfig
from txclf.core.errors import ClusterError, DataError
from txclf.training.distributed import ray_trainer
from txclf.training.lr_schedule import learning_rate_factor
from txclf.training.progress import Progress
from txclf.training.train import train

pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]

TXCLF = str(Path(sys.executable).with_name("txclf"))
LONG = ["train.epochs=20", "train.early_stopping_patience=0", "train.checkpoint_every=10", "data.shuffle_window=1000"]
Figure = Callable[[str], None]


def line(fault: str, run: RunConfig, seconds: float) -> str:
    """Return a line for the table of the docs: `seconds` until the workers trained again."""
    begun = attempts.read(run.run_folder)
    repeated = sum(attempt.repeated for attempt in begun)
    return f"{fault}: {len(begun)} attempts, {repeated} steps repeated, trains again after {seconds:.0f} s"


# ---------------------------------------------------------------------------------------------------- worker processes


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, data: str, local_ray: None) -> RunConfig:
    """Return a run of two workers without a fault."""
    run, _ = trained(tmp_path_factory.mktemp("unbroken"), data, *LONG, "compute.workers=2", "compute.cpus_per_worker=1")
    return run


MOMENTS: dict[str, Callable[[Progress, RunConfig], bool]] = {
    "in a step": lambda progress, run: progress.step >= 43 and progress.stage == "training",
    "during validation": lambda progress, run: progress.step >= 40 and progress.stage == "validating",
    "right after a checkpoint": lambda progress, run: any(
        saved.step >= 40 for saved in checkpoints.committed(f"{run.run_folder}/checkpoints")
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_train_killed_worker_restarts_from_the_checkpoint(
    tmp_path: Path, data: str, unbroken: RunConfig, moment: str, figure: Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_trainer, "POLL_S", 0.02)  # a validation takes less than a tenth of a second
    run = tiny(tmp_path, data, *LONG, "compute.workers=2", "compute.cpus_per_worker=1")
    killed, back = list[float](), list[float]()

    def kill(progress: Progress) -> bool:
        if not killed and MOMENTS[moment](progress, run):
            os.kill(workers_of_ray()[0], signal.SIGKILL)
            killed.append(time.time())
        elif killed and not back and len(attempts.read(run.run_folder)) == 2:
            back.append(time.time())
        return False

    summary = train(run, prepare_here(run), kill)
    assert summary.attempts == 2
    assert lines(run) == lines(unbroken)
    assert summary.steps_repeated <= 10 + 1
    figure(line(f"worker SIGKILLed {moment}", run, back[0] - killed[0]))


def test_train_stalled_worker_is_named_and_replaced(
    tmp_path: Path, data: str, unbroken: RunConfig, figure: Figure
) -> None:
    words = [*LONG, "compute.workers=2", "compute.cpus_per_worker=1", "train.stall_timeout_s=15"]
    run = tiny(tmp_path, data, *words)
    stopped, notes = list[float](), list[str]()

    def stop(progress: Progress) -> bool:
        if progress.step >= 43 and not stopped:
            os.kill(workers_of_ray()[1], signal.SIGSTOP)
            stopped.append(time.time())
        notes[:] = progress.notes
        return False

    summary = train(run, prepare_here(run), stop)
    assert re.search(r"rank [01]: no heartbeat for \d+ s \(.*, step \d+\)", "\n".join(notes))
    assert summary.attempts == 2
    assert lines(run) == lines(unbroken)
    figure(line("worker SIGSTOPped", run, attempts.read(run.run_folder)[1].time - stopped[0]))


def test_train_workers_that_keep_dying_end_the_run_with_one_message(tmp_path: Path, data: str, local_ray: None) -> None:
    run = tiny(tmp_path, data, *LONG, "compute.workers=1", "compute.max_failures=1")

    killed = set[int]()

    def kill(progress: Progress) -> bool:
        begun = attempts.read(run.run_folder)
        if len(begun) not in killed and begun and progress.step >= begun[-1].step + 20:  # with a checkpoint
            killed.add(len(begun))
            os.kill(workers_of_ray()[0], signal.SIGKILL)
        return False

    with pytest.raises(ClusterError, match=r"workers died 2 times \(`compute.max_failures`\)"):
        train(run, prepare_here(run), kill)
    assert checkpoints.committed(f"{run.run_folder}/checkpoints")


def test_train_non_finite_loss_ends_a_run_of_two_workers(tmp_path: Path, data: str, local_ray: None) -> None:
    run = tiny(tmp_path, data, "compute.workers=2", "train.learning_rate=1e30", "train.max_grad_norm=0")
    with pytest.raises(Exception, match="gradient is not finite at step 2") as info:
        train(run, prepare_here(run), go_on)
    assert getattr(info.value, "exit_code", None) == 2
    assert len(attempts.read(run.run_folder)) == 1


# ------------------------------------------------------------------------------------------------------------- driver


def start(run: RunConfig, data: str, *words: str) -> subprocess.Popen[str]:
    """`txclf train` of this run in a process of its own."""
    folder = Path(run.storage).parent
    (folder / "run.yaml").write_text("name: run\n")
    settings = [*TINY, f"data.train={data}", f"storage={run.storage}", *words]
    environment = {**os.environ, "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [TXCLF, "train", str(folder / "run.yaml"), *settings],
        env=environment,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    STARTED.append(process)
    return process


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """End the drivers that a failed test left."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
        process.communicate()
    STARTED.clear()


def logged(run: RunConfig) -> int:
    path = Path(run.run_folder, "metrics.jsonl")
    return path.read_bytes().count(b'"train_loss"') if path.exists() else 0


@pytest.mark.parametrize("workers", [0, 2])
def test_train_killed_driver_resumes(
    tmp_path: Path, data: str, unbroken: RunConfig, workers: int, figure: Figure
) -> None:
    words = [*LONG, f"compute.workers={workers}", "compute.cpus_per_worker=0.5"]
    run = tiny(tmp_path / "runs", data, *words)
    prepare_here(run)
    process = start(run, data, *words)
    wait_until(lambda: logged(run) >= 45, process)
    left = workers_of_ray()
    assert len(left) >= workers
    process.kill()
    process.wait()
    killed = time.time()
    wait_until(lambda: not any(Path("/proc", str(pid)).exists() for pid in left))
    again = start(run, data, *words, "--resume")
    assert again.wait(timeout=PATIENCE_S) == 0, again.stderr and again.stderr.read()
    whole = unbroken if workers else trained(tmp_path / "whole", data, *words)[0]
    assert lines(run) == lines(whole)
    seconds = attempts.read(run.run_folder)[1].time - killed
    figure(line(f"driver SIGKILLed, {workers} workers, --resume", run, seconds))


# ------------------------------------------------------------------------------------------------------------ storage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("making a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1000))


def freeze(disk: Path) -> None:
    folder = str(disk / "runs/run/checkpoints")
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)


@pytest.mark.parametrize(("harm", "reason"), [(fill, "No space left"), (freeze, "Read-only")])
@pytest.mark.parametrize("workers", [0, 2])
def test_train_failing_storage_is_one_message_and_keeps_checkpoints(
    small_disk: Path, tmp_path: Path, data: str, workers: int, harm: Callable[[Path], None], reason: str
) -> None:
    words = [*LONG, f"compute.workers={workers}", "compute.cpus_per_worker=0.5"]
    run = tiny(small_disk / "runs", data, *words)
    prepare_here(run)
    process = start(run, data, *words)
    wait_until(lambda: logged(run) >= 25, process)
    harm(small_disk)
    _, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2, error
    assert reason in error
    assert "Traceback" not in error
    for saved in checkpoints.committed(f"{run.run_folder}/checkpoints"):
        assert checkpoints.load(saved)["step"] == saved.step


def test_train_missing_data_is_an_error_that_names_the_rank(tmp_path: Path, data: str, figure: Figure) -> None:
    words = ["compute.workers=2", "compute.cpus_per_worker=0.5", "compute.max_failures=0", "train.stall_timeout_s=10"]
    run = tiny(tmp_path / "runs", data, *words)
    (shard,) = Path(prepare_here(run), "train").iterdir()
    shard.unlink()
    os.mkfifo(shard)  # whoever opens it waits, as with storage that hangs
    process = start(run, data, *words)
    began = time.time()
    assert process.stderr
    said = next(said for said in process.stderr if said.startswith("rank"))
    figure(f"data that hang: named {time.time() - began:.0f} s after the start of the command")
    assert re.match(r"rank 0: no batch for \d+ s \(waiting for data, step 0\)", said), said
    _, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2, error
    assert re.search(r"error: rank 0: no batch for .* that was failure 1 \(`compute.max_failures`\)", error, re.I)
    assert "Traceback" not in error


@pytest.mark.parametrize("split", ["train", "valid"])
def test_train_truncated_shard_is_named(tmp_path: Path, data: str, local_ray: None, split: str) -> None:
    run = tiny(tmp_path, data, "compute.workers=1")
    prepared = prepare_here(run)
    (shard,) = Path(prepared, split).iterdir()
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{shard.name}.*cannot be read"):
        train(run, prepared, go_on)


# -------------------------------------------------------------------------------------------------------------- nodes


def on_bed(bed: Testbed, run: RunConfig, data: str, words: Sequence[str]) -> subprocess.Popen[str]:
    settings = [*TINY, f"data.train={data}", f"storage={run.storage}", *words, f"compute.address={bed.address}"]
    prepare_here(run)
    path = Path(run.storage, "run.yaml")
    path.write_text("name: run\n")
    with Path(run.storage, "driver.log").open("w") as log:
        return bed.start(TXCLF, "train", str(path), *settings, stdout=log, stderr=subprocess.STDOUT)


def ended(process: subprocess.Popen[str], run: RunConfig) -> None:
    code = process.wait(timeout=PATIENCE_S)
    assert code == 0, Path(run.storage, "driver.log").read_text()[-3000:]


@contextmanager
def training_on_two_nodes(
    folder: Path, data: str, *words: str
) -> Iterator[tuple[Testbed, RunConfig, Node, subprocess.Popen[str]]]:
    """Start a run on a head without CPUs and two nodes of one CPU, and lose the second node at step 45."""
    run = tiny(folder / "runs", data, *LONG, *words)
    with Testbed(head_cpus=0) as bed:
        bed.add("one", 1)
        two = bed.add("two", 1)
        process = on_bed(bed, run, data, [*LONG, *words])
        wait_until(lambda: logged(run) >= 45, process)
        yield bed, run, two, process


def test_train_lost_node_is_replaced(tmp_path: Path, data: str, unbroken: RunConfig, figure: Figure) -> None:
    with training_on_two_nodes(tmp_path, data, "compute.workers=2") as (bed, run, two, process):
        bed.kill(two)
        killed = time.time()
        bed.add("three", 1)
        ended(process, run)
    assert lines(run) == lines(unbroken)
    figure(line("node lost, another comes", run, attempts.read(run.run_folder)[1].time - killed))


def test_train_elastic_run_shrinks_and_grows_with_the_same_steps(tmp_path: Path, data: str, figure: Figure) -> None:
    words = ["train.epochs=5000", "compute.workers=[1, 2]", "data.shuffle_window=10000"]
    with training_on_two_nodes(tmp_path, data, *words) as (bed, run, two, process):
        bed.kill(two)
        killed = time.time()
        wait_until(lambda: len(attempts.read(run.run_folder)) == 2, process)
        figure(line("elastic, a node lost: 2 to 1 workers", run, time.time() - killed))
        bed.add("three", 1)
        came = time.time()
        wait_until(lambda: len(attempts.read(run.run_folder)) == 3, process)
        figure(line("elastic, a node comes: 1 to 2 workers", run, time.time() - came))
        trained = logged(run)
        wait_until(lambda: logged(run) > trained + 50, process)
        process.terminate()
        assert process.wait(timeout=PATIENCE_S) == 143
    begun = attempts.read(run.run_folder)
    assert [attempt.workers for attempt in begun] == [2, 1, 2]
    assert (begun[1].repeated <= 11, begun[2].repeated) == (True, 0)
    # Each step is logged once, with the same rows on any number of workers, so the losses form one curve.
    steps = [entry["step"] for entry in lines(run) if "train_loss" in entry]
    assert steps == list(range(1, len(steps) + 1))
    (last,) = checkpoints.committed(f"{run.run_folder}/checkpoints")[-1:]
    assert last.step == steps[-1]
    rates = [entry["learning_rate"] for entry in lines(run) if "train_loss" in entry]
    total = 5000 * 17
    expected = [3e-3 * learning_rate_factor(run.train, step - 1, total) for step in steps]
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


def test_train_node_without_network_is_replaced(tmp_path: Path, data: str, unbroken: RunConfig, figure: Figure) -> None:
    if not namespaces_work():
        pytest.skip("cutting a node off needs network namespaces")
    words = ["compute.workers=[1, 2]", "train.stall_timeout_s=10"]
    with training_on_two_nodes(tmp_path, data, *words) as (bed, run, two, process):
        bed.cut(two)
        cut = time.time()
        ended(process, run)
    begun = attempts.read(run.run_folder)
    workers = [attempt.workers for attempt in begun]
    # Before Ray declares the node dead, workers may start there once more, in vain.
    assert (workers[0], workers[-1]) == (2, 1)
    np.testing.assert_allclose(losses(run)[:40], losses(unbroken)[:40], rtol=1e-6)
    figure(line("node cut off the network", run, begun[-1].time - cut))
