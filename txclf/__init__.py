"""Fine-tune or train transformer text classifiers, from labelled files to a usable model, by one run file.

The public functions and classes are imported on first use: torch takes seconds, and `txclf --help` needs none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from txclf._version import __version__

if TYPE_CHECKING:
    from txclf.api import (
        audit,
        curve,
        distill,
        drift,
        evaluate,
        export,
        load_config,
        predict,
        prepare,
        ray_result,
        serve,
        train,
        tune,
    )
    from txclf.core.errors import BundleError, ClusterError, ConfigError, DataError, StorageError, TxclfError
    from txclf.estimator import TextClassifier
    from txclf.inference.classifier import Classifier, Prediction
    from txclf.inference.seq2seq import Seq2Seq
    from txclf.training.progress import Interrupted, Progress

__all__ = [
    "BundleError",
    "Classifier",
    "ClusterError",
    "ConfigError",
    "DataError",
    "Interrupted",
    "Prediction",
    "Progress",
    "Seq2Seq",
    "StorageError",
    "TextClassifier",
    "TxclfError",
    "__version__",
    "audit",
    "curve",
    "distill",
    "drift",
    "evaluate",
    "export",
    "load_config",
    "predict",
    "prepare",
    "ray_result",
    "serve",
    "train",
    "tune",
]

_HOMES = {
    "txclf.api": (
        "audit",
        "curve",
        "distill",
        "drift",
        "evaluate",
        "export",
        "load_config",
        "predict",
        "prepare",
        "ray_result",
        "serve",
        "train",
        "tune",
    ),
    "txclf.core.errors": (
        "BundleError",
        "ClusterError",
        "ConfigError",
        "DataError",
        "StorageError",
        "TxclfError",
    ),
    "txclf.estimator": ("TextClassifier",),
    "txclf.inference.classifier": ("Classifier", "Prediction"),
    "txclf.inference.seq2seq": ("Seq2Seq",),
    "txclf.training.progress": ("Interrupted", "Progress"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
