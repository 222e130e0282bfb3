"""Load a bundle of any task as the class that answers it."""

from __future__ import annotations

import torch

from txclf.inference import bundle
from txclf.inference.classifier import Classifier
from txclf.inference.seq2seq import Seq2Seq

Model = Classifier | Seq2Seq


def load_model(folder: str, *, on_cpu: bool = False) -> Model:
    """Load a bundle as a `Classifier` or `Seq2Seq`, on the GPU if there is one and `on_cpu` is not set.

    Raises `BundleError` if the folder is not a bundle or the bundle is damaged.
    """
    is_seq2seq = bundle.read_metadata(folder).task_spec.is_seq2seq
    model: Model = Seq2Seq.load(folder) if is_seq2seq else Classifier.load(folder)
    if on_cpu:
        model.model.cpu()
        model.device = torch.device("cpu")
    return model
