"""Nodes that are taken away with notice, and nodes that an autoscaler starts for a run."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import TINY, lines, prepare_here, tiny
from tests.helpers.testbed import Node, Testbed, environment
from tests.helpers.waiting import PATIENCE_S, wait_until
from txclf.artifacts import attempts, checkpoints
from txclf.config.run_config import RunConfig

pytestmark = pytest.mark.faults

TXCLF, RAY = (str(Path(sys.executable).with_name(name)) for name in ("txclf", "ray"))
NOTICE_S = 14


def start(bed: Testbed, run: RunConfig, data: str, words: list[str]) -> subprocess.Popen[str]:
    Path(run.storage).mkdir(parents=True, exist_ok=True)
    path = Path(run.storage, "run.yaml")
    path.write_text("name: run\n")
    settings = [*TINY, f"data.train={data}", f"storage={run.storage}", *words, f"compute.address={bed.address}"]
    with Path(run.storage, "driver.log").open("w") as log:
        return bed.start(TXCLF, "train", str(path), *settings, stdout=log, stderr=subprocess.STDOUT)


def drain(bed: Testbed, node: Node) -> None:
    """Tell Ray, as a cloud does, that a node is taken away in `NOTICE_S` seconds."""
    code = "import ray, sys; ray.init(address=sys.argv[1], logging_level=50, log_to_driver=False)\n"
    code += "print('id', next(n['NodeID'] for n in ray.nodes() if n['Labels'].get('name') == sys.argv[2]))"
    within: dict[str, Any] = {"check": True, "capture_output": True, "text": True, "env": environment(), "timeout": 60}
    asked = subprocess.run([*bed.head.within, sys.executable, "-c", code, bed.address, node.name], **within)
    (node_id,) = re.findall(r"^id (\w+)$", asked.stdout, re.MULTILINE)
    words = ["--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    words += ["--reason-message", "spot", "--deadline-remaining-seconds", str(NOTICE_S), "--address", bed.address]
    subprocess.run([*bed.head.within, RAY, "drain-node", *words], **within)


def saved_step(run: RunConfig) -> int:
    saved = checkpoints.committed(f"{run.run_folder}/checkpoints")
    return saved[-1].step if saved else 0


def last_step(run: RunConfig) -> int:
    path = Path(run.run_folder, "metrics.jsonl")
    return path.read_bytes().count(b'"train_loss"') if path.exists() else 0


def test_train_preempted_node_is_replaced_and_no_step_repeated(tmp_path: Path, data: str, figure: Any) -> None:
    # No validation and no timed checkpoint comes within the notice.
    words = ["train.epochs=4000", "train.eval_every=4000", "train.checkpoint_every=1h", "compute.workers=2"]
    words += ["compute.max_failures=0"]  # preemptions count apart
    run = tiny(tmp_path / "runs", data, *words)
    prepare_here(run)
    with Testbed(head_cpus=0) as bed:
        bed.add("one", 1)
        two = bed.add("two", 1)
        process = start(bed, run, data, words)
        wait_until(lambda: last_step(run) >= 10, process)
        before = saved_step(run)
        drain(bed, two)
        noticed, at_notice = time.time(), last_step(run)
        wait_until(lambda: saved_step(run) > before, process)
        figure(f"notice of a preemption: saved after {time.time() - noticed:.1f} s, step {saved_step(run)}")
        assert before == 0
        wait_until(lambda: time.time() > noticed + NOTICE_S - 1, process)
        last = saved_step(run)
        wait_until(lambda: time.time() > noticed + NOTICE_S + 3, process)
        bed.kill(two)
        bed.add("three", 1)
        wait_until(lambda: len(attempts.read(run.run_folder)) == 2, process)
        process.terminate()
        assert process.wait(timeout=PATIENCE_S) == 143, Path(run.storage, "driver.log").read_text()[-3000:]
    first, second = attempts.read(run.run_folder)
    assert first.step == 0
    assert second.step >= last >= at_notice > 0
    assert second.repeated == 0
    logged = [entry["step"] for entry in lines(run) if "train_loss" in entry]
    assert logged == list(range(1, len(logged) + 1))
    assert "takes a node of the workers away" in Path(run.storage, "driver.log").read_text()
    after = second.time - noticed - NOTICE_S
    figure(f"node preempted: {second.repeated} steps repeated, trains again {after:.0f} s after its time")


def test_train_waits_for_the_nodes_of_the_autoscaler(tmp_path: Path, data: str, figure: Any) -> None:
    node_type = {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    words = ["train.epochs=1", "compute.workers=2", "compute.cpus_per_worker=2"]
    run = tiny(tmp_path / "runs", data, *words)
    prepare_here(run)  # or its tasks would ask the autoscaler for nodes first
    with Testbed(head_cpus=0, autoscaling={"worker": node_type}) as bed:
        started = time.time()
        process = start(bed, run, data, words)
        code = process.wait(timeout=PATIENCE_S)
        log = Path(run.storage, "driver.log").read_text()
        assert code == 0, log[-3000:]
    assert "waiting for workers: 2 of them need 4 CPUs, and Ray has 0 of" in log
    (attempt,) = attempts.read(run.run_folder)
    assert attempt.workers == 2
    figure(f"no node at first: the autoscaler starts two, training begins after {attempt.time - started:.0f} s")
