"""Teachers of small runs, and their students."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

import txclf
from tests.helpers.files import WORDS
from tests.helpers.runs import go_on, tiny
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.data.tokenizer import train_tokenizer
from txclf.inference import bundle
from txclf.inference.metadata import Calibration
from txclf.model.classifier import TransformerClassifier
from txclf.training.train import check_folder, recorded_data, train


def save_teacher(folder: Path, run: RunConfig, labels: list[str]) -> str:
    """Write the bundle of an untrained, calibrated model with another tokenizer and return its folder."""
    tokenizer = train_tokenizer(run.tokenizer.model_copy(update={"vocab_size": 280}), WORDS * 4)
    torch.manual_seed(7)
    model = TransformerClassifier(run.model, tokenizer.get_vocab_size(), len(labels), run.tokenizer.max_length)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    bundle.save(
        str(folder),
        run,
        model.state_dict(),
        labels=labels,
        tokenizers=[tokenizer.to_str()],
        metrics={},
        rows={},
        calibration=Calibration(temperature=1.7, error_before=0.1, error_after=0.1, rows=9),
    )
    return str(folder)


def student(folder: Path, data: str, teacher: str, *words: str) -> RunConfig:
    return tiny(folder, data, f"distill.teacher={teacher}", *words)


def finish(run: RunConfig) -> dict[str, torch.Tensor]:
    """Train a run, resumed if it began, and return the weights of its bundle."""
    check_folder(run, resume=storage.exists(f"{run.run_folder}/run.yaml"))
    train(run, recorded_data(run) or txclf.prepare(run), go_on)
    return load_file(f"{run.run_folder}/model/model.safetensors")
