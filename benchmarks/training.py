"""Measure one sample of training speed: real tokens per second, over the same rows and number of optimizer steps.

    .venv/bin/python benchmarks/training.py VARIANT RUN.yaml [key=value …]

Prints one line of JSON. The variants, all with the run file's shape and precision, on `--threads` threads:

    txclf         a run of `txclf train`, in this process or on Ray, by `compute.workers`
    bare          our model and optimizer over batches that are ready in memory: no Lightning, no Ray, no reading
    original      `nn.TransformerEncoder` in plain Lightning, random batches padded to their longest row, fp32
    transformers  Transformers' `Trainer` and a `BertConfig`, fused AdamW, SDPA, and our batches in our order: its own
                  grouping by length is as good on a whole epoch, but not on the few rows of a sample

The clock runs from the end of step `--warmup` to the end of the last, for every variant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.data import shards
from txclf.data.batches import NUMBER, TokenRows
from txclf.data.prepare import prepare
from txclf.data.sampler import micro_batches
from txclf.training import mfu
from txclf.training.job import WorkerConfig
from txclf.training.module import ClassifierModule
from txclf.training.precision import choose_precision, uses_gpu
from txclf.training.progress import Interrupted, Progress
from txclf.training.train import train


class Marks:
    """When each step ended, and the real tokens that it took."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.times: list[float] = []
        self.tokens: list[int] = []
        self.started = time.time()

    def step(self, tokens: int) -> None:
        self.times.append(time.perf_counter())
        self.tokens.append(tokens)

    def rate(self) -> float:
        """Return the tokens per second after the warm-up."""
        return sum(self.tokens[self.warmup :]) / (self.times[-1] - self.times[self.warmup - 1])


class Work:
    """The rows of the first steps of a run, and their tokens."""

    def __init__(self, run: RunConfig, steps: int) -> None:
        self.folder = prepare(run)
        self.manifest = shards.load_manifest(self.folder)
        table = shards.read_split(self.folder, self.manifest, "train", ["input_ids", "label"])
        self.rows = TokenRows([table])
        reader = WorkerConfig(run, self.folder).train_reader()
        windows = range(reader.windows.window_of(steps - 1) + 1)
        tables = [reader.read(window) for window in windows]
        plans = [reader.batches(window, reader.rows([tables[window]])) for window in windows]
        numbers = [table[NUMBER].to_numpy()[plan] for table, plan in zip(tables, plans, strict=True)]
        self.steps = list(np.concatenate(numbers)[:steps])
        self.tokens = [int(self.rows.lengths[rows].sum()) for rows in self.steps]

    @property
    def all_rows(self) -> list[int]:
        return [int(row) for rows in self.steps for row in rows]


def txclf(run: RunConfig, work: Work, marks: Marks) -> dict[str, Any]:
    """Train the run itself; its TensorBoard log has the end of each step."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    steps = len(work.steps)
    words = {"name": f"bench-{uuid.uuid4().hex[:8]}"}
    logged = run.train.model_copy(update={"log_every_steps": 1, "checkpoint_every": 1.0})
    run = run.model_copy(update={**words, "train": logged})

    def show(progress: Progress) -> bool:
        return progress.step >= steps

    try:
        with suppress(Interrupted):
            train(run, work.folder, show)
        (log,) = Path(run.run_folder, "tensorboard").glob("events*")
        ends: dict[int, float] = {}
        for event in EventFileLoader(str(log)).Load():
            if event.step:
                ends.setdefault(event.step, event.wall_time)
        marks.times, marks.tokens = [ends[step + 1] for step in range(steps)], work.tokens
        attempt = json.loads(Path(run.run_folder, "attempts.jsonl").read_text().splitlines()[0])
        lines = [json.loads(line) for line in Path(run.run_folder, "metrics.jsonl").read_text().splitlines()]
        waits = [line["data_share"] for line in lines if "data_share" in line][marks.warmup :]
        return {"startup": attempt["time"] - marks.started, "data_share": float(np.mean(waits))}
    finally:
        storage.remove_folder(run.run_folder)


def bare(run: RunConfig, work: Work, marks: Marks) -> dict[str, Any]:
    precision, _ = choose_precision(run.train.precision, uses_gpu(run.compute))
    vocab_size, num_classes = work.manifest.vocab_size, len(work.manifest.labels)
    module = ClassifierModule(run, vocab_size=vocab_size, num_classes=num_classes, total_steps=len(work.steps))
    module.train()
    optimizer = module.configure_optimizers()["optimizer"]
    batches = []
    for rows in work.steps:
        parts = micro_batches(rows, run.train.micro_batches)
        batches.append([(work.rows.batch(part), len(rows)) for part in parts])
    for parts_of_step, tokens in zip(batches, work.tokens, strict=True):
        for batch, size in parts_of_step:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = module.training_loss(module.logits(batch), batch["labels"]) / size
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), run.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        marks.step(tokens)
    flops = sum(
        mfu.training_flops(run.model, run.train, batch, 0)
        for parts_of_step in batches[marks.warmup :]
        for batch, _ in parts_of_step
    )
    rate = mfu.matrix_rate(torch.device("cpu"), precision)
    return {"mfu": flops / (marks.times[-1] - marks.times[marks.warmup - 1]) / rate, "matrix_rate": rate}


def original(run: RunConfig, work: Work, marks: Marks) -> dict[str, Any]:
    import pytorch_lightning as pl
    from original_classifier import OriginalClassifier, collate
    from torch.utils.data import DataLoader

    order = np.random.default_rng(run.seed).permutation(work.all_rows)
    ids = [torch.from_numpy(work.rows.tokens(np.array([row])).astype(np.int64)) for row in order]
    examples = list(zip(ids, work.rows.labels[order].tolist(), strict=True))
    size = run.train.batch_size // run.train.micro_batches
    lengths = work.rows.lengths[order]
    batches = lengths[: len(order) // size * size].reshape(-1, size)
    padding = 1.0 - batches.sum() / (batches.max(axis=1) * size).sum()

    class Mark(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if (index + 1) % run.train.micro_batches == 0:
                end = (index + 1) * size
                marks.step(int(lengths[end - run.train.batch_size : end].sum()))

    with tempfile.TemporaryDirectory() as scratch:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            accumulate_grad_batches=run.train.micro_batches,
            gradient_clip_val=run.train.max_grad_norm,
            callbacks=[Mark()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=scratch,
        )
        module = OriginalClassifier(run, work.manifest.vocab_size, len(work.manifest.labels), len(work.steps))
        module.validation_step = None  # type: ignore[assignment,method-assign]
        trainer.fit(module, DataLoader(examples, batch_size=size, collate_fn=collate, num_workers=0))  # type: ignore[arg-type]
    return {"padding": padding}


def transformers(run: RunConfig, work: Work, marks: Marks) -> dict[str, Any]:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import transformers as hf

    model = run.model
    shape = hf.BertConfig(
        vocab_size=work.manifest.vocab_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        intermediate_size=model.intermediate_size,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.attention_dropout,
        max_position_embeddings=run.tokenizer.max_length,
        num_labels=len(work.manifest.labels),
        attn_implementation="sdpa",
    )
    examples = []
    for row in work.all_rows:
        ids = work.rows.tokens(np.array([row])).tolist()
        examples.append({"input_ids": ids, "labels": int(work.rows.labels[row])})
    positions = 0
    seen: list[int] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        nonlocal positions
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        lengths = torch.tensor([len(row) for row in ids])
        positions += padded.numel()
        seen.append(int(lengths.sum()))
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        return {"input_ids": padded, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}

    class Mark(hf.TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **kwargs: Any) -> None:
            parts = run.train.micro_batches
            marks.step(sum(seen[(state.global_step - 1) * parts : state.global_step * parts]))

    precision, _ = choose_precision(run.train.precision, uses_gpu(run.compute))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = hf.TrainingArguments(
            scratch,
            num_train_epochs=1,
            per_device_train_batch_size=run.train.batch_size // run.train.micro_batches,
            gradient_accumulation_steps=run.train.micro_batches,
            learning_rate=run.train.learning_rate,
            max_grad_norm=run.train.max_grad_norm,
            optim="adamw_torch_fused",
            train_sampling_strategy="sequential",
            bf16=precision == "bf16-mixed",
            use_cpu=True,
            remove_unused_columns=False,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            seed=run.seed,
        )
        trainer = hf.Trainer(
            hf.BertForSequenceClassification(shape),
            arguments,
            train_dataset=examples,
            data_collator=collate,
            callbacks=[Mark()],
        )
        trainer.train()
    return {"padding": 1 - sum(seen) / positions, "version": hf.__version__}


VARIANTS = {"txclf": txclf, "bare": bare, "original": original, "transformers": transformers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("run_file")
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=15, help="the warm-up included")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_intermixed_args()
    torch.set_num_threads(chosen.threads)
    run = run_config.load(chosen.run_file, chosen.words)
    torch.manual_seed(run.seed)
    work = Work(run, chosen.steps)
    marks = Marks(chosen.warmup)
    found = VARIANTS[chosen.variant](run, work, marks)
    print(json.dumps({"value": marks.rate(), **found}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
