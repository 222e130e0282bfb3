"""Files of a pretrained model: found in a folder or on the Hugging Face hub, checked, copied to the storage of runs.

    <storage>/pretrained/<hash>/config.json, tokenizer.json, …, model.safetensors
                               source.json     name and commit; written last

The copy is what nodes of a cluster read, and what a run is resumed with after the original is gone.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

from txclf.core import storage
from txclf.core.errors import ConfigError

CONFIG, SOURCE = "config.json", "source.json"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_TEXT_ENDINGS = (".json", ".txt", ".model")
"""Configuration and vocabularies. `.py` is left out, because the code of a model is never run."""
_WEIGHTS = ".safetensors"


class Pretrained(NamedTuple):
    """A pretrained model in a folder of this machine."""

    folder: str
    commit: str | None
    """Commit of the hub; None for a folder."""


def require_package(needed_by: str = "`model.pretrained`") -> None:
    """Raise `ConfigError` if Transformers is not installed."""
    if find_spec("transformers") is None:
        raise ConfigError(f"{needed_by} needs the package `transformers`. Run `pip install 'txclf[pretrained]'`.")


@contextmanager
def located(name: str, revision: str | None = None) -> Iterator[Pretrained]:
    """Find a pretrained model and check its files. A folder is tried first, then the hub.

    Raises `ConfigError` if it is not found, has no weights in the safetensors format, or needs code of its own.
    """
    require_package()
    with tempfile.TemporaryDirectory(prefix="txclf-pretrained-") as scratch:
        if storage.exists(name):
            if revision is not None:
                raise ConfigError(f"`model.revision`: `{name}` is a folder, without revisions. Remove the key.")
            found = Pretrained(_local(name, scratch), None)
        elif _HUB_ID.match(name):
            found = _from_hub(name, revision)
        else:
            raise ConfigError(
                f"`model.pretrained`: `{name}` does not exist. Set a folder or an id of the hub such as `org/name`."
            )
        _check(found.folder, name)
        yield found


def _local(name: str, scratch: str) -> str:
    """Return a folder of this machine with the files of a folder or URI."""
    if "://" not in name:
        if not os.path.isdir(name):
            raise ConfigError(f"`model.pretrained`: `{name}` is a file. Set the folder that holds `config.json`.")
        return name
    for file in storage.list_folder(name):
        if file.endswith((*_TEXT_ENDINGS, _WEIGHTS)):
            storage.copy_file(storage.join(name, file), os.path.join(scratch, file))
    return scratch


def _from_hub(name: str, revision: str | None) -> Pretrained:
    """Return a snapshot of the hub: its cache on this machine, or a download unless `HF_HUB_OFFLINE` is set."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": [f"*{ending}" for ending in (*_TEXT_ENDINGS, _WEIGHTS)],
        "ignore_patterns": ["*/*"],
    }
    try:
        folder = snapshot_download(name, **options)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"`model.pretrained`: `{name}` is no folder here, and the hub did not give it: {reason} "
            "Set the path of a folder with its files, or check the id and the network."
        ) from None
    return Pretrained(folder, os.path.basename(folder))


def _check(folder: str, name: str) -> None:
    """Raise `ConfigError` unless a folder has a configuration and safetensors."""
    files = set(os.listdir(folder))
    if CONFIG not in files:
        raise ConfigError(f"`model.pretrained`: `{name}` has no `{CONFIG}`. Set the folder of a Transformers model.")
    if not any(file.endswith(_WEIGHTS) for file in files):
        others = sorted(file for file in files if file.endswith((".bin", ".pt", ".ckpt", ".h5", ".msgpack")))
        found = f" It has `{others[0]}`, which can run code when it is loaded." if others else ""
        raise ConfigError(
            f"`model.pretrained`: `{name}` has no weights in the safetensors format.{found} "
            "Load it with Transformers where you trust it, and save it with `save_pretrained`."
        )
    if "adapter_config.json" in files:
        raise ConfigError(f"`model.pretrained`: `{name}` is an adapter. Merge it into its model and save that.")
    config = storage.read_json(os.path.join(folder, CONFIG))
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConfigError(f"`model.pretrained`: `{name}/{CONFIG}` names no `model_type`. Set a Transformers model.")
    from transformers import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        advice = (
            "It brings its own code, which txclf does not run."
            if "auto_map" in config
            else "Install a version of Transformers that knows it."
        )
        raise ConfigError(
            f"`model.pretrained`: Transformers has no model of the type `{config['model_type']}` of `{name}`. {advice}"
        )


def stored(found: Pretrained, name: str, root: str) -> str:
    """Copy the files of a model to `<root>/pretrained` unless they are there, and return their folder."""
    names = sorted(
        file for file in os.listdir(found.folder) if file.endswith((*_TEXT_ENDINGS, _WEIGHTS)) and file != SOURCE
    )
    digest = hashlib.sha256()
    for file in names:
        digest.update(file.encode())
        with open(os.path.join(found.folder, file), "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    folder = storage.join(root, "pretrained", digest.hexdigest()[:16])
    if not storage.exists(storage.join(folder, SOURCE)):
        storage.require_writable(folder)
        for file in names:
            storage.copy_file(os.path.join(found.folder, file), storage.join(folder, file))
        storage.write_json(storage.join(folder, SOURCE), {"name": name, "commit": found.commit})
    return folder


@contextmanager
def local_copy(folder: str, *, weights: bool) -> Iterator[str]:
    """Give the path of a stored model on this machine; without `weights`, of its other files."""
    if "://" not in folder:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="txclf-pretrained-") as scratch:
        for file in storage.list_folder(folder):
            if weights or not file.endswith(_WEIGHTS):
                storage.copy_file(storage.join(folder, file), os.path.join(scratch, file))
        yield scratch
