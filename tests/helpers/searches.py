"""Summaries of searches that need not run."""

from __future__ import annotations

from typing import Any

from txclf.tuning.tune import Search


def summary_of(winner: int, settings: dict[str, Any]) -> Search:
    """Return the summary of a finished search."""
    rest = {"epochs": 3.0, "epochs_to_the_end": 3.0, "importance": {}, "seconds": 1.0, "best": {"valid_accuracy": 0.9}}
    counts = {"trials": 4, "finished": 4, "stopped": 0, "failed": 0}
    known = {"version": "0", "metric": "valid_accuracy", "winner": winner, "settings": settings}
    return Search.model_validate({**known, **counts, **rest})
