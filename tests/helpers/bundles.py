"""Texts to predict, and copies of bundles."""

from __future__ import annotations

import shutil
from pathlib import Path

TEXTS = ["the quick brown fox", "", "a lazy dog jumps", "naïve 🎉 日本 " * 30, "fox", "the [PAD] fox"]


def copied(folder: str, target: Path) -> Path:
    """Copy a bundle to `model` in a folder, where it may be changed."""
    return Path(shutil.copytree(folder, target / "model"))
