"""Measure one sample of fine-tuning speed: an epoch over the same rows, by txclf or by the `Trainer` of Transformers.

    .venv/bin/python benchmarks/finetuning.py VARIANT RUN.yaml [key=value …] [--steps N]

The run file sets `model.pretrained`, and any labelled file serves. The first rows of its training split, `--steps`
batches of them, are one epoch for every variant: same rows, model folder, batch size, precision, learning rate and
threads. Prints one line of JSON. The variants:

    txclf              a run of `txclf train`, in this process
    trainer            Transformers' `Trainer` with its defaults: random batches padded to their longest row by
                       `DataCollatorWithPadding`, SDPA, fused AdamW, rows tokenized beforehand
    grouped            the same with `train_sampling_strategy="group_by_length"`

and, to see where the time goes, `txclf` with parts replaced by what `trainer` uses:

    without-buckets    batches of random rows instead of rows of similar length
    without-dropout    the dropout of torch
    without-attention  SDPA
    without-optimizer  one learning rate for all layers, and gradients clipped by torch before AdamW
    loop               all four at once: what differs from `trainer` is the loop alone

and on a GPU `compiled`: `txclf` with `train.compile`.

`bench.py --suites finetuning` runs them in turns. The clock runs from the end of step `--warmup` to the end of the
last. On a GPU, steps in between are not waited for.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn
from training import Marks

from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.data import shards
from txclf.data.batches import TokenRows
from txclf.data.prepare import prepare
from txclf.model import pretrained as pretrained_model
from txclf.model import pretrained_attention
from txclf.training import mfu, pretrained_network
from txclf.training.job import WorkerConfig
from txclf.training.module import TrainingModule
from txclf.training.precision import choose_precision, uses_gpu
from txclf.training.train import train

MEGA_BATCH = 50
"""Batches that `group_by_length` sorts together on a large training set, and here too; by default it would take a
quarter of a small one."""


class Work:
    """The rows of a sample: the run that trains on them for one epoch, and its model and data."""

    def __init__(self, run: RunConfig, steps: int, warmup: int, scratch: str) -> None:
        whole = prepare(run)
        manifest = shards.load_manifest(whole)
        run, self.encoder = pretrained_network.settled(run, manifest)
        size = run.train.batch_size
        table = shards.read_split(whole, manifest, "train", ["text", "label"])
        if len(table) < (steps + 1) * size:
            sys.exit(f"{len(table)} training rows are not enough for {steps} steps of {size} rows and validation")
        names = pa.array([manifest.labels[label] for label in table["label"].to_pylist()])
        table = pa.table({"text": table["text"], "label": names})
        files = {"train": table[: steps * size], "valid": table[steps * size : (steps + 1) * size]}
        known = set(files["train"]["label"].to_pylist())
        files["valid"] = files["valid"].filter(
            pa.array([label in known for label in files["valid"]["label"].to_pylist()])
        )
        for split, rows in files.items():
            pq.write_table(rows, os.path.join(scratch, f"{split}.parquet"))
        self.run = run_config.with_overrides(
            run,
            {
                "name": "sample",
                "storage": scratch,
                **{f"data.{split}": os.path.join(scratch, f"{split}.parquet") for split in files},
                "data.test": None,
                "data.text": "text",
                "data.label": "label",
                "train.epochs": 1,
                "train.calibrate": False,
                "train.log_every_steps": warmup,
                "train.checkpoint_every": 1.0,
            },
        )
        self.folder = prepare(self.run)
        self.manifest = shards.load_manifest(self.folder)
        self.precision, _ = choose_precision(run.train.precision, uses_gpu(run.compute))


def txclf(work: Work, marks: Marks, **changes: Any) -> dict[str, Any]:
    """Train the run itself; its TensorBoard log has the end of each step."""
    run = run_config.with_overrides(work.run, changes)
    summary = train(run, work.folder)
    (log,) = Path(run.run_folder, "tensorboard").glob("events*")
    ends: dict[int, float] = {}
    for event in EventFileLoader(str(log)).Load():
        if event.step:
            ends.setdefault(event.step, event.wall_time)
    steps, marked = summary.steps, sorted(ends)
    marks.times = [ends[marked[bisect.bisect_left(marked, step + 1)]] for step in range(steps)]
    marks.tokens = tokens_of_steps(run, work, steps)
    lines = [json.loads(line) for line in Path(run.run_folder, "metrics.jsonl").read_text().splitlines()]
    losses = [line["train_loss"] for line in lines if "train_loss" in line]
    return {"padding": summary.padding_share, "loss": sum(losses) / len(losses)}


def tokens_of_steps(run: RunConfig, work: Work, steps: int) -> list[int]:
    """Return the real tokens of each step, special tokens included."""
    assert work.manifest.special_tokens is not None
    reader = WorkerConfig(run, work.folder).train_reader()
    table = shards.read_split(work.folder, work.manifest, "train", ["input_ids", "label"])
    lengths = TokenRows([table]).lengths + work.manifest.special_tokens.added
    counts = []
    for window in range(reader.windows.window_of(steps - 1) + 1):
        rows = reader.rows([reader.read(window)])
        counts += [int(lengths[rows.numbers[batch]].sum()) for batch in reader.batches(window, rows)]
    return counts[:steps]


def without_buckets(work: Work, marks: Marks) -> dict[str, Any]:
    return txclf(work, marks, **{"train.bucket_batches": 1})


def without_dropout(work: Work, marks: Marks) -> dict[str, Any]:
    replace(pretrained_model, "Dropout", nn.Dropout)
    return txclf(work, marks)


def without_attention(work: Work, marks: Marks) -> dict[str, Any]:
    replace(pretrained_attention, "option", lambda config: {"attn_implementation": "sdpa"})
    return txclf(work, marks)


ONE_RATE = {"train.layer_decay": 1.0, "train.head_learning_rate": None}


def without_optimizer(work: Work, marks: Marks) -> dict[str, Any]:
    replace(TrainingModule, "configure_gradient_clipping", clip_by_torch)
    return txclf(work, marks, **ONE_RATE)


def clip_by_torch(module: TrainingModule, *args: Any, **options: Any) -> None:
    nn.utils.clip_grad_norm_(module.model.parameters(), module.config.train.max_grad_norm)
    module.last_step += 1
    module.good_steps += 1
    module.train_loss_sum += module.step_loss
    module.step_loss.zero_()


def loop(work: Work, marks: Marks) -> dict[str, Any]:
    replace(pretrained_model, "Dropout", nn.Dropout)
    replace(pretrained_attention, "option", lambda config: {"attn_implementation": "sdpa"})
    replace(TrainingModule, "configure_gradient_clipping", clip_by_torch)
    return txclf(work, marks, **{**ONE_RATE, "train.bucket_batches": 1})


def replace(owner: Any, name: str, value: Any) -> None:
    assert hasattr(owner, name)
    setattr(owner, name, value)


def compiled(work: Work, marks: Marks) -> dict[str, Any]:
    return txclf(work, marks, **{"train.compile": True})


def trainer(work: Work, marks: Marks, strategy: str = "random") -> dict[str, Any]:
    import transformers as hf
    from transformers.trainer_pt_utils import get_length_grouped_indices

    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    run, labels = work.run, work.manifest.labels
    tokenizer = hf.AutoTokenizer.from_pretrained(work.encoder)
    model = hf.AutoModelForSequenceClassification.from_pretrained(work.encoder, num_labels=len(labels))
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    table = pq.read_table(run.data.train[0])
    encoded = tokenizer(table["text"].to_pylist(), truncation=True, max_length=run.tokenizer.max_length)
    answers = [labels.index(label) for label in table["label"].to_pylist()]
    examples = [
        {**{key: values[row] for key, values in encoded.items()}, "labels": answer}
        for row, answer in enumerate(answers)
    ]
    pad = hf.DataCollatorWithPadding(tokenizer)
    seen, positions = [], 0

    def collate(rows: list[dict[str, Any]]) -> Any:
        nonlocal positions
        batch = pad(rows)
        seen.append(sum(len(row["input_ids"]) for row in rows))
        positions += batch["input_ids"].numel()
        return batch

    class Mark(hf.TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (marks.warmup, len(examples) // run.train.batch_size):
                mfu.wait(arguments.device)
            marks.step(seen[state.global_step - 1])

    class Grouped(hf.Trainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            lengths = [len(example["input_ids"]) for example in examples]
            return get_length_grouped_indices(lengths, run.train.batch_size, MEGA_BATCH)

    with tempfile.TemporaryDirectory() as scratch:
        arguments = hf.TrainingArguments(
            scratch,
            num_train_epochs=1,
            per_device_train_batch_size=run.train.batch_size,
            learning_rate=run.train.learning_rate,
            max_grad_norm=run.train.max_grad_norm,
            bf16=work.precision == "bf16-mixed",
            use_cpu=not uses_gpu(run.compute),
            dataloader_pin_memory=uses_gpu(run.compute),
            disable_tqdm=True,
            save_strategy="no",
            report_to="none",
            seed=run.seed,
        )
        make = Grouped if strategy == "group_by_length" else hf.Trainer
        done = make(model, arguments, train_dataset=examples, data_collator=collate, callbacks=[Mark()]).train()
    return {"padding": 1 - sum(seen) / positions, "loss": done.training_loss, "version": hf.__version__}


def grouped(work: Work, marks: Marks) -> dict[str, Any]:
    return trainer(work, marks, "group_by_length")


VARIANTS: dict[str, Callable[[Work, Marks], dict[str, Any]]] = {
    "txclf": txclf,
    "compiled": compiled,
    "trainer": trainer,
    "grouped": grouped,
    "without-buckets": without_buckets,
    "without-dropout": without_dropout,
    "without-attention": without_attention,
    "without-optimizer": without_optimizer,
    "loop": loop,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("run_file")
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=100, help="the warm-up included; a multiple of it")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_intermixed_args()
    torch.set_num_threads(chosen.threads)
    run = run_config.load(chosen.run_file, chosen.words)
    torch.manual_seed(run.seed)
    with tempfile.TemporaryDirectory(prefix="txclf-finetuning-") as scratch:
        work = Work(run, chosen.steps, chosen.warmup, scratch)
        marks = Marks(chosen.warmup)
        found = VARIANTS[chosen.variant](work, marks)
    seconds = (marks.times[-1] - marks.times[chosen.warmup - 1]) / (len(marks.times) - chosen.warmup)
    print(json.dumps({"value": marks.rate(), "seconds_per_step": seconds, "precision": work.precision, **found}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
