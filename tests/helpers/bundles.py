"""Texts to predict, and copies of bundles."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from txclf.inference import bundle

TEXTS = ["the quick brown fox", "", "a lazy dog jumps", "naïve 🎉 日本 " * 30, "fox", "the [PAD] fox"]


PANIC = "a" * 30 + "b"
"""Text on which the tokenizer of `panicking` panics."""


def panicking(folder: Path) -> None:
    """Give a bundle a tokenizer that panics on `PANIC`: its expression takes too many steps."""
    data = json.loads((folder / bundle.TOKENIZER).read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a*)*$"}, "behavior": "Isolated", "invert": False}
    data["pre_tokenizer"] = split
    rewritten(folder, files={bundle.TOKENIZER: json.dumps(data).encode()})


def copied(folder: str, target: Path) -> Path:
    """Copy a bundle to `model` in a folder, where it may be changed."""
    return Path(shutil.copytree(folder, target / "model"))


def rewritten(
    folder: Path,
    *,
    metadata: Callable[[dict[str, Any]], object] = lambda _: None,
    weights: Callable[[dict[str, Tensor]], object] = lambda _: None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Change the files of a bundle and their checksums, as a program would that saves a broken model."""
    tensors = load_file(folder / bundle.WEIGHTS)
    weights(tensors)
    save_file(tensors, folder / bundle.WEIGHTS)
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
    data = json.loads((folder / bundle.METADATA).read_text())
    data["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in data["sha256"]}
    metadata(data)
    (folder / bundle.METADATA).write_text(json.dumps(data))
