"""Load a bundle of any task as the class that answers it."""

from __future__ import annotations

import torch

from txclf.inference import bundle
from txclf.inference.classifier import Classifier
from txclf.inference.seq2seq import Seq2Seq

Model = Classifier | Seq2Seq


def load_model(folder: str, device: torch.device | str | None = None) -> Model:
    """Load a bundle as a `Classifier` or `Seq2Seq`, on a GPU if there is one and `device` does not name another device.

    Raises `BundleError` if the folder is not a bundle or the bundle is damaged.
    """
    is_seq2seq = bundle.read_metadata(folder).task_spec.is_seq2seq
    return Seq2Seq.load(folder, device) if is_seq2seq else Classifier.load(folder, device)
