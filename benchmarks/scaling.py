"""Model the cost of data-parallel training on many GPUs, and measure one part of the model here.

    .venv/bin/python benchmarks/scaling.py             the table of the model
    .venv/bin/python benchmarks/scaling.py --measure   the all-reduce of a step by two gloo processes on this machine

A step of W workers takes `compute + max(0, exchange - hidden)`:

    compute    tokens of a worker / its tokens per second
    exchange   2 (W - 1) / W x gradient bytes / bandwidth + 2 log2(W) x latency      (ring, with a tree's latency)
    hidden     DDP sends a bucket as soon as its gradients are ready: all but the last bucket may overlap with the
               backward pass, two thirds of the compute

The efficiency is the rate of W workers over W times that of one. NVLink carries the exchange between the GPUs of a
node, the network that between nodes of 8.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

BUCKET = 25 * 2**20
"""Bytes of a bucket of DDP."""


@dataclass(frozen=True)
class Load:
    name: str
    parameters: int
    tokens_per_second: float
    """Tokens per second of one GPU: an assumption until benchmarks/gpu.py measures it."""


@dataclass(frozen=True)
class Network:
    bandwidth: float
    """Bytes per second of one GPU."""
    latency: float
    """Seconds per message."""


NVLINK, INFINIBAND = Network(300e9, 5e-6), Network(40e9, 10e-6)
LOADS = [Load("6 x 256, vocabulary 16,000", 8_960_000, 6e6), Load("12 x 768, vocabulary 16,000", 97_400_000, 0.6e6)]


def step_seconds(load: Load, workers: int, tokens: float, bytes_each: int) -> float:
    """Return the seconds of a step with `tokens` tokens per worker."""
    compute = tokens / load.tokens_per_second
    if workers == 1:
        return compute
    network = NVLINK if workers <= 8 else INFINIBAND
    size = load.parameters * bytes_each
    exchange = 2 * (workers - 1) / workers * size / network.bandwidth + 2 * math.log2(workers) * network.latency
    last = min(1.0, BUCKET / size)
    hidden = min((1 - last) * exchange, compute * 2 / 3)
    return compute + exchange - hidden


def table() -> None:
    print("efficiency; the global batch grows with the workers (65,536 tokens each), or stays at 524,288 tokens")
    for load in LOADS:
        for kind, bytes_each in (("fp32", 4), ("bf16", 2)):
            row = []
            for workers in (8, 64, 512):
                for tokens in (65_536.0, 524_288 / workers):
                    share = step_seconds(load, 1, tokens, 4) / step_seconds(load, workers, tokens, bytes_each)
                    row.append(f"{share:4.0%}")
            print(f"{load.name:28} gradients {kind}: " + "   ".join(f"{w}: {a} / {b}" for w, a, b in _threes(row)))


def _threes(row: list[str]) -> list[tuple[int, str, str]]:
    return [(workers, row[2 * at], row[2 * at + 1]) for at, workers in enumerate((8, 64, 512))]


def measure(rank: int, size: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    gradients = torch.ones(size)
    times = []
    for _ in range(20):
        dist.barrier()
        start = time.perf_counter()
        for bucket in gradients.split(BUCKET // 4):
            dist.all_reduce(bucket)
        times.append(time.perf_counter() - start)
    if rank == 0:
        middle = sorted(times)[10]
        print(f"{size * 4 / 1e6:.1f} MB between 2 processes: {middle * 1e3:.1f} ms, {size * 4 / middle / 1e9:.2f} GB/s")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--port", type=int, default=29_611)
    chosen = parser.parse_args()
    table()
    if chosen.measure:
        torch.multiprocessing.spawn(measure, args=(LOADS[0].parameters, chosen.port), nprocs=2)


if __name__ == "__main__":
    main()
