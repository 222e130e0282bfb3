"""The parts of a run for Lightning programs of your own, imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from txclf import upstream

if TYPE_CHECKING:
    from txclf.training.data_module import ShardsDataModule
    from txclf.training.module import ClassifierModule
    from txclf.training.module_multilabel import MultilabelModule
    from txclf.training.module_seq2seq import Seq2SeqModule

__all__ = ["ClassifierModule", "MultilabelModule", "Seq2SeqModule", "ShardsDataModule"]

upstream.hide_transformers_from_torchmetrics()
upstream.load_scipy_signal_when_used()
_HOMES = {
    "ClassifierModule": "module",
    "MultilabelModule": "module_multilabel",
    "Seq2SeqModule": "module_seq2seq",
    "ShardsDataModule": "data_module",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
