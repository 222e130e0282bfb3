"""Measure training steps on a GPU without Ray and Lightning: tokens/s and MFU, next to torch and Transformers.

    .venv/bin/python benchmarks/gpu.py [--tokens N] [--steps N] [--shapes seed,wide] [--lengths 128,512] …

The shapes are those of `jobs/seed_classifier.yaml` (`seed`), 12 layers of 768 (`wide`), and two pretrained encoders
with random weights: `minilm` (BERT, 6 layers of 384) and `modernbert` (22 layers of 768).

Each row is a step over ready batches of full length: forward, backward, clipping, fused AdamW, in bf16 if the device
has it. `compiled` is `torch.compile`, `graphs` the same with CUDA graphs (mode `reduce-overhead`), which remove the
kernel-launch overhead of the small model. The last table is the data path alone: from rows in memory, as the shards
store them, to padded batches in pinned memory. On a CPU the script runs too, but only to show that it works.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from txclf.config.sections import Model
from txclf.data.batches import TokenRows
from txclf.data.sampler import window_batches
from txclf.model.classifier import TransformerClassifier
from txclf.model.pretrained import PretrainedClassifier
from txclf.training import mfu
from txclf.training.precision import choose_precision

VOCAB, CLASSES, DROPOUT = 16_000, 4, 0.1
SHAPES = {
    "seed": Model(
        num_layers=6,
        hidden_size=256,
        num_heads=8,
        intermediate_size=1024,
        position_encoding="sinusoidal",
        dropout=DROPOUT,
    ),
    "wide": Model(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072, dropout=DROPOUT),
}


ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm": ("BertConfig", {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536}),
    "modernbert": ("ModernBertConfig", {}),
}
"""Configurations of Transformers for the pretrained shapes; what is not named is the default, that of the base size."""


class Torchs(nn.Module):
    """`nn.TransformerEncoder` with the same embedding, pooling and head."""

    def __init__(self, shape: Model) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, shape.hidden_size)
        layer = nn.TransformerEncoderLayer(
            shape.hidden_size,
            shape.num_heads,
            shape.intermediate_size,
            shape.dropout,
            "gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, shape.num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(shape.hidden_size, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.embedding(ids)).mean(dim=1))
        return logits


class Transformers(nn.Module):
    """A classifier of Transformers with SDPA."""

    def __init__(self, config: Any) -> None:
        from transformers import AutoModelForSequenceClassification

        super().__init__()
        make: Any = AutoModelForSequenceClassification.from_config
        self.network = make(config, attn_implementation="sdpa")

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.network(input_ids=ids).logits
        return logits


def bert(shape: Model, length: int) -> nn.Module:
    """Return Transformers' BERT of a shape, without dropout of attention weights."""
    from transformers import BertConfig

    return Transformers(
        BertConfig(
            vocab_size=VOCAB,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            intermediate_size=shape.intermediate_size,
            hidden_dropout_prob=shape.dropout,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=length,
            num_labels=CLASSES,
        )
    )


def models(shape: str, length: int) -> dict[str, Callable[[], nn.Module]]:
    """Return what makes each model of a shape, by its name."""
    if shape in SHAPES:
        size = SHAPES[shape]
        return {
            "txclf": lambda: TransformerClassifier(size, VOCAB, CLASSES, length),
            "nn.TransformerEncoder": lambda: Torchs(size),
            "Transformers BERT": lambda: bert(size, length),
        }
    import transformers

    name, sizes = ENCODERS[shape]
    config = getattr(transformers, name)(**sizes, num_labels=CLASSES)
    return {"txclf": lambda: PretrainedClassifier(config), "Transformers": lambda: Transformers(config)}


def training_flops(model: nn.Module, rows: int, length: int) -> float:
    """Return the operations of a training step: matrix products of all tokens and attention, three passes."""
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    matrices = [part for part in model.parameters() if part.ndim == 2 and id(part) not in embeddings]
    layers = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    width, depth = min(part.shape[0] for part in matrices if part.shape[0] > CLASSES), max(map(len, layers))
    return 3.0 * rows * length * (2 * sum(map(Tensor.numel, matrices)) + 4 * depth * width * length)


def step_seconds(
    model: nn.Module, ids: Tensor, labels: Tensor, steps: int, half: bool, compiled: str | None
) -> tuple[float, float]:
    """Return the seconds of a training step, and of the first three, which include `torch.compile`."""
    device = ids.device
    model = model.to(device).train()
    network: Callable[[Tensor], Tensor] = model
    if compiled is not None:
        network = torch.compile(model, mode=compiled or None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(network(ids).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    start = time.perf_counter()
    for _ in range(3):
        step()
    mfu.wait(device)
    first = time.perf_counter() - start
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        mfu.wait(device)
        times.append((time.perf_counter() - start) / steps)
    return sorted(times)[1], first


def data_path(device: torch.device, rows: int, batch_size: int) -> dict[str, float]:
    """Return rows and tokens per second from rows of about 60 tokens to batches on the device."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(20, 100, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = draw.integers(0, VOCAB, int(offsets[-1])).astype(np.int32)
    ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    table = pa.table({"input_ids": ids, "label": pa.array(draw.integers(0, CLASSES, rows).astype(np.int32))})
    held = TokenRows([table])
    start = time.perf_counter()
    steps = window_batches(held.lengths, batch_size, bucket_batches=50, seed=0, epoch=0)
    tokens = 0
    for step_rows in steps:
        batch = held.batch(step_rows)
        if device.type == "cuda":
            batch["input_ids"].pin_memory().to(device, non_blocking=True)
        tokens += batch["num_tokens"]
    mfu.wait(device)
    seconds = time.perf_counter() - start
    return {"rows_per_second": steps.size / seconds, "tokens_per_second": tokens / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--tokens", type=int, default=65_536 if gpu else 2048, help="of a step")
    parser.add_argument("--steps", type=int, default=20 if gpu else 2)
    parser.add_argument("--shapes", default="seed,wide,minilm,modernbert" if gpu else "seed,minilm")
    parser.add_argument("--lengths", default="128,512")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=gpu)
    parser.add_argument("--out", default="gpu.json")
    chosen = parser.parse_args()
    device = torch.device("cuda" if gpu else "cpu")
    device_name = torch.cuda.get_device_name() if gpu else platform.processor() or "CPU"
    precision, reason = choose_precision("auto", gpu)
    rate = mfu.matrix_rate(device, precision)
    print(f"{device_name}, torch {torch.__version__}, {precision}, {rate / 1e12:,.2f} TFLOP/s in products ({reason})")
    result: dict[str, Any] = {
        "device": device_name,
        "torch": torch.__version__,
        "precision": precision,
        "matrix_rate": rate,
    }
    result["steps"] = []
    for shape, length in [
        (shape, int(length)) for shape in chosen.shapes.split(",") for length in chosen.lengths.split(",")
    ]:
        ids = torch.randint(1, VOCAB, (max(1, chosen.tokens // length), length), device=device)
        labels = torch.randint(0, CLASSES, (len(ids),), device=device)
        ways = [(name, make, None) for name, make in models(shape, length).items()]
        if chosen.compile:
            ways += [(f"{name}, compiled", make, "") for name, make, _ in ways]
            ways.append(("txclf, graphs", ways[0][1], "reduce-overhead"))
        for name, make, compiled in ways:
            torch.manual_seed(0)
            model = make()
            half = precision == "bf16-mixed"
            seconds, first = step_seconds(model, ids, labels, chosen.steps, half, compiled)
            row = {
                "shape": shape,
                "length": length,
                "model": name,
                "tokens_per_second": ids.numel() / seconds,
                "mfu": training_flops(model, *ids.shape) / seconds / rate,
                "first_steps_s": first,
            }
            result["steps"].append(row)
            print(
                f"{shape:10} {length:4}  {name:34} {row['tokens_per_second']:>12,.0f} tokens/s"
                f"   MFU {row['mfu']:.1%}   first steps {first:.1f} s",
                flush=True,
            )
            torch.compiler.reset()
            Path(chosen.out).write_text(json.dumps(result, indent=1) + "\n")
    result["data"] = data_path(device, 200_000 if gpu else 50_000, 256)
    print("data path: " + ", ".join(f"{value:,.0f} {key}" for key, value in result["data"].items()))
    Path(chosen.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
