"""`train.contrastive_steps`: a pretrained encoder that first learns to give rows of one label similar vectors.

    <prepared>/contrastive-<hash>/config.json, tokenizer.json, …, model.safetensors
                                  source.json   written last

A few rows make many pairs. The encoder learns a cosine of 1 for two rows of one label, and of 0 for others (SetFit,
arXiv:2209.11055, with the loss of arXiv:1908.10084); then its head trains as that of any encoder. The hash is of all
that the weights depend on, so resumed runs and trials share them. One process does it, in a minute for MiniLM; a run
that is stopped meanwhile begins it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from txclf import pretrained
from txclf.config.sections import Model
from txclf.config.train import Train
from txclf.core import openmp, storage
from txclf.training import fitting
from txclf.training.fitting import Report
from txclf.training.job import WorkerConfig
from txclf.training.progress import Interrupted, Progress

PAIRS = 16
"""Pairs of a step; about half of them have one label."""
LEARNING_RATE = 5e-5
"""Peak learning rate. A fixed one, so trials share the encoder."""

Ints = npt.NDArray[np.int64]


class Pairs(NamedTuple):
    """The pairs of a step."""

    first: Ints
    """Numbers of rows (pairs,)."""
    second: Ints
    same: npt.NDArray[np.bool_]
    """True for two rows of one label (pairs,)."""


def ready(config: WorkerConfig, report: Report, notes: list[str]) -> WorkerConfig:
    """Return the configuration with the encoder that has learned from pairs, after teaching it if it is not stored yet.

    Raises `Interrupted` if `report` asked for a stop.
    """
    steps = config.run.train.contrastive_steps
    if not steps:
        return config
    folder = storage.join(config.prepared, f"contrastive-{_digest(config)}")
    if not storage.exists(storage.join(folder, pretrained.SOURCE)):
        fitting.begin(config)
        notes = [*notes, f"the encoder first learns from {steps * PAIRS:,} pairs of training rows"]

        def show(done: int) -> None:
            read, total = (count * 2 * PAIRS for count in (done, steps))  # rows
            if report(Progress("preparing", read, total, notes=notes)):
                raise Interrupted

        with fitting.alone(folder, report, notes, "teaches the same encoder") as holding:
            if not storage.exists(storage.join(folder, pretrained.SOURCE)):
                done = 0
                show(done)
                with closing(_steps(config, folder)) as found:
                    for step in found:
                        done = done if step is None else step
                        show(done)
                        if done == steps:  # in this process before the encoder is written
                            holding.require()
                holding.require()
                storage.write_json(storage.join(folder, pretrained.SOURCE), {"name": config.encoder, "commit": None})
    return replace(config, taught=folder)


def _digest(config: WorkerConfig) -> str:
    """Return the hash of all that the weights of the encoder depend on."""
    run = config.run
    assert config.encoder is not None
    changed = {"dropout", "attention_dropout"} & run.model.model_fields_set
    if _learning(run.model).freeze != "none":
        changed.add("freeze")
    depends_on = {
        **run.model_dump(mode="json", include={"seed"}),
        # The hash of the model's files is the name of their folder.
        "encoder": config.encoder.rstrip("/").rpartition("/")[2],
        "model": run.model.model_dump(mode="json", include=changed),
        "tokens": [run.tokenizer.max_length, *run.truncation.model_dump().values()],
        "train": [run.train.contrastive_steps, run.train.train_on_valid, run.train.precision in ("fp32", "fp16")],
        "method": 1,  # to be raised when the same settings give other weights
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]


def _learning(model: Model) -> Model:
    """Return the settings with which an encoder learns from pairs: one that is frozen afterwards is not yet."""
    return model.model_copy(update={"freeze": "none"}) if model.freeze == "encoder" else model


def pairs(labels: Ints, steps: int, seed: int) -> Iterator[Pairs]:
    """Yield the pairs of each step. Every row is as often the first of a pair as any other.

    The only row of a label is paired with itself, and dropout makes its vectors differ.
    """
    draw = np.random.default_rng([seed, 0x70616972])
    of_label = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    others = {label: np.flatnonzero(labels != label) for label in of_label}
    order = np.empty(0, np.int64)
    for _ in range(steps):
        while len(order) < PAIRS:
            order = np.concatenate([order, draw.permutation(len(labels))])
        first, order = order[:PAIRS], order[PAIRS:]
        same = (draw.random(PAIRS) < 0.5) | (len(of_label) == 1)
        second = [
            draw.choice(_without(of_label[labels[row]], row) if is_same else others[labels[row]])
            for row, is_same in zip(first, same, strict=True)
        ]
        yield Pairs(first, np.array(second, np.int64), same)


def _without(rows: Ints, row: np.int64) -> Ints:
    return rows[rows != row] if len(rows) > 1 else rows


def _steps(config: WorkerConfig, folder: str) -> Generator[int | None]:
    """Return the generator of `_learn`, in this process or on Ray, where None comes between the steps."""
    if not config.run.compute.on_ray:
        return _learn(config, folder)
    from txclf import ray_cluster
    from txclf.training.distributed import worker_task

    ray_cluster.require(config.run.compute)
    return worker_task.stream(config.run.compute, _learn, config, folder)


def _learn(config: WorkerConfig, folder: str) -> Generator[int]:
    """Teach the encoder of a run and write it to a folder. Yields the steps done."""
    from safetensors.torch import save_file

    from txclf.model import mean_pooling
    from txclf.model.pretrained import PretrainedClassifier
    from txclf.training import pretrained_network

    run = config.run
    assert config.encoder is not None
    with pretrained.local_copy(config.encoder, weights=True) as source, tempfile.TemporaryDirectory() as target:
        settings = pretrained_network.config_of(source, run, config.manifest())
        encoder = mean_pooling.detached(PretrainedClassifier.load(source, settings, _learning(run.model)).network)
        with openmp.spinning_on_free_cpus():
            yield from _fit(encoder, config)
        for file in os.listdir(source):
            is_index = file.endswith(".index.json")  # of several files of weights
            if file.endswith(pretrained.TEXT_ENDINGS) and not is_index:
                shutil.copy(os.path.join(source, file), target)
        weights = {name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}
        save_file(
            {name: value for name, value in weights.items() if not name.startswith("pooler.")},  # part of the head
            os.path.join(target, "model.safetensors"),
            {"format": "pt"},
        )
        mean_pooling.plain(settings).save_pretrained(target)
        for file in os.listdir(target):
            if file != pretrained.SOURCE:
                storage.copy_file(os.path.join(target, file), storage.join(folder, file))


def _fit(encoder: Any, config: WorkerConfig) -> Iterator[int]:
    """Teach an encoder, in place. Yields the steps done."""
    import torch
    from torch.nn.functional import cosine_similarity, mse_loss

    from txclf.data import shards
    from txclf.data.batches import TokenRows
    from txclf.training.lr_schedule import schedule_learning_rate
    from txclf.training.optim import parameter_groups
    from txclf.training.precision import choose_precision

    run = config.run
    torch.manual_seed(run.seed)
    table = shards.read_split(config.prepared, config.manifest(), "train", ["input_ids", "label"])
    rows, labels = TokenRows([table], layout=config.layout()), table["label"].to_numpy()
    labelled = np.flatnonzero(labels >= 0)
    assert len(labelled), "no row has a label"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_mixed = choose_precision(run.train.precision, device.type == "cuda")[0] == "bf16-mixed"
    encoder.to(device).train()

    def vectors(numbers: Ints) -> torch.Tensor:
        """Return the means (B, D) of the token vectors of rows."""
        ids, mask, segments, _, _ = rows.pad(numbers)
        inside = (torch.ones_like(ids) if mask is None else mask.long()).to(device)
        types = {} if segments is None else {"token_type_ids": segments.to(device)}
        with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
            states = encoder(input_ids=ids.to(device), attention_mask=inside, **types).last_hidden_state
        mean: torch.Tensor = (states.float() * inside[..., None]).sum(dim=1) / inside.sum(dim=1, keepdim=True)
        return mean

    steps, train = run.train.contrastive_steps, Train(learning_rate=LEARNING_RATE, schedule="linear")
    optimizer = torch.optim.AdamW(parameter_groups(encoder, train), lr=LEARNING_RATE, fused=True)
    schedule = schedule_learning_rate(optimizer, train, 0, steps)
    for step, found in enumerate(pairs(labels[labelled], steps, run.seed)):
        both = vectors(labelled[np.concatenate([found.first, found.second])])
        wanted = torch.from_numpy(found.same).to(device, torch.float32)
        loss = mse_loss(cosine_similarity(both[:PAIRS], both[PAIRS:]), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), train.max_grad_norm)
        optimizer.step()
        schedule.step()
        yield step + 1
