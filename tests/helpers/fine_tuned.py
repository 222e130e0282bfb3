"""Bundles of tiny pretrained models with a new head, saved without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.helpers.encoders import write_encoder
from txclf.config import run_config
from txclf.data import pretrained_tokenizer
from txclf.inference import bundle, transformers_folder
from txclf.inference.metadata import Calibration
from txclf.model import mean_pooling
from txclf.model.pretrained import PretrainedClassifier, read_config, with_sizes

LABELS = ["low", "mid", "high"]
THRESHOLDS = {"low": 0.4, "mid": 0.5, "high": 0.6}


def fine_tuned(folder: Path, architecture: str = "bert", **settings: Any) -> str:
    """Save a calibrated bundle that reads 16 tokens and return its folder. `settings` are sections of the run file."""
    encoder = write_encoder(folder / "encoder", architecture)
    model = {"pretrained": encoder, **settings.pop("model", {})}
    run = run_config.parse({"name": "tiny", "tokenizer": {"max_length": 16}, "model": model, **settings})
    tokenizer, special = pretrained_tokenizer.load(run)
    is_multilabel = run.task_spec.is_multilabel
    config = read_config(encoder, run.model, labels=LABELS, is_multilabel=is_multilabel, pad=special.pad)
    torch.manual_seed(0)
    network = PretrainedClassifier.load(encoder, config, run.model)
    out = str(folder / "model")
    bundle.save(
        out,
        run.model_copy(update={"model": with_sizes(run.model, config)}),
        network.state_dict(),
        labels=LABELS,
        tokenizers=[tokenizer],
        metrics={"valid_loss": 1.25, "valid_accuracy": 0.5, "valid_f1_macro": 0.25},
        rows={"train": 1234, "valid": 56},
        # The tiny networks differ in the size of their logits.
        calibration=Calibration(
            temperature=1.5 if architecture == "modernbert" else 0.1 if mean_pooling.is_used(config) else 0.02,
            error_before=0.2,
            error_after=0.1,
            rows=56,
        ),
        thresholds=THRESHOLDS if is_multilabel else None,
        special=special,
        transformers_files=transformers_folder.files(encoder, config, run.tokenizer.max_length, run.truncation),
    )
    return out
