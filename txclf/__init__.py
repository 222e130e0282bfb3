"""Train transformer text classifiers, from labelled files to a measured, usable model, by one run file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from txclf._version import __version__

if TYPE_CHECKING:
    from txclf.inference.classifier import Classifier, Prediction
    from txclf.inference.seq2seq import Seq2Seq

__all__ = ["Classifier", "Prediction", "Seq2Seq", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use: torch takes seconds, and `txclf --help` needs none of it.
    if name in ("Classifier", "Prediction"):
        from txclf.inference import classifier

        return getattr(classifier, name)
    if name == "Seq2Seq":
        from txclf.inference.seq2seq import Seq2Seq

        return Seq2Seq
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
