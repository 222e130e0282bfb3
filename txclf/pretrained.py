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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

from txclf.core import storage
from txclf.core.errors import ConfigError, StorageError

CONFIG, SOURCE = "config.json", "source.json"
POOLING = "1_Pooling/config.json"
"""How a model of sentence-transformers pools the token vectors."""
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
TEXT_ENDINGS = (".json", ".txt", ".model")
"""Configuration and vocabularies. `.py` is left out, because the code of a model is never run."""
_WEIGHTS = ".safetensors"


class Pretrained(NamedTuple):
    """A pretrained model in a folder, of this machine or of the storage."""

    folder: str
    commit: str | None
    """Commit of the hub; None for a folder."""


def require_package(needed_by: str = "`model.pretrained`") -> None:
    """Raise `ConfigError` if Transformers is not installed."""
    if find_spec("transformers") is None:
        raise ConfigError(f"{needed_by} needs the package `transformers`. Run `pip install 'txclf[pretrained]'`.")


@contextmanager
def located(name: str, revision: str | None = None, *, weights: bool = True) -> Iterator[Pretrained]:
    """Find a pretrained model and check its files. A folder is tried first, then the hub.

    Without `weights`, those of a URI are not copied to this machine.

    Raises `ConfigError` if it is not found, has no weights in the safetensors format, or needs code of its own.
    """
    require_package()
    with tempfile.TemporaryDirectory(prefix="txclf-pretrained-") as scratch:
        if storage.exists(name):
            if revision is not None:
                raise ConfigError(f"`model.revision`: `{name}` is a folder, without revisions. Remove the key.")
            files = _files(name)
            found = Pretrained(_local(name, files, scratch, weights), None)
        elif _HUB_ID.match(name):
            found = _from_hub(name, revision)
            files = os.listdir(found.folder)
        else:
            raise ConfigError(
                f"`model.pretrained`: `{name}` does not exist. Set a folder or an id of the hub such as `org/name`."
            )
        _check(found.folder, files, name)
        yield found


def _files(name: str) -> list[str]:
    """Return the names of the files of a folder or URI."""
    if "://" in name:
        return storage.list_folder(name)
    if not os.path.isdir(name):
        raise ConfigError(f"`model.pretrained`: `{name}` is a file. Set the folder that holds `{CONFIG}`.")
    return os.listdir(name)


def _local(name: str, files: Iterable[str], scratch: str, weights: bool) -> str:
    """Return a folder of this machine with the files of a folder or URI."""
    if "://" not in name:
        return name
    _copy(name, files, scratch, weights)
    return scratch


def _copy(source: str, files: Iterable[str], target: str, weights: bool) -> None:
    """Copy the files of a model; without `weights`, all others."""
    for file in files:
        if file.endswith((*TEXT_ENDINGS, _WEIGHTS) if weights else TEXT_ENDINGS):
            storage.copy_file(storage.join(source, file), os.path.join(target, file))
    if storage.exists(storage.join(source, POOLING)):
        storage.copy_file(storage.join(source, POOLING), os.path.join(target, POOLING))


def _from_hub(name: str, revision: str | None) -> Pretrained:
    """Return a snapshot of the hub: its cache on this machine, or a download unless `HF_HUB_OFFLINE` is set."""
    from huggingface_hub import constants, snapshot_download

    options: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": [f"*{ending}" for ending in (*TEXT_ENDINGS, _WEIGHTS)],
        "ignore_patterns": ["*/*"],
    }
    try:
        folder = snapshot_download(name, **options)
        snapshot_download(name, revision=os.path.basename(folder), allow_patterns=POOLING)
    except Exception as error:  # of the hub, of its HTTP client, of the file system
        raise ConfigError(_hub_problem(name, revision, error, constants.HF_HUB_OFFLINE)) from None
    return Pretrained(folder, os.path.basename(folder))


def _hub_problem(name: str, revision: str | None, error: Exception, is_offline: bool) -> str:
    """Return the message for an error of the hub."""
    from huggingface_hub import errors

    what = f"`model.pretrained`: `{name}` is no folder here"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"`model.revision`: `{name}` has no revision `{revision}` on the hub. Set a branch, tag or commit."
    if isinstance(error, errors.GatedRepoError):
        return f"{what}, and gated on the hub. Accept its terms there, and set `HF_TOKEN` to your access token."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{what}, and the hub has no such model, or it is private. Correct the id, or set `HF_TOKEN`."
    if is_offline:
        return (
            f"{what}, and not whole in the cache of the hub, which alone is read while `HF_HUB_OFFLINE` is set. "
            f"Unset it, or set the path of a folder with its files."
        )
    cause = error.__cause__ or error
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
    return f"{what}, and the hub did not give it: {reason}. Set the path of a folder, or check the network."


def _check(folder: str, files: Iterable[str], name: str) -> None:
    """Raise `ConfigError` unless a folder has a known configuration, and `files` are those of a model."""
    files = set(files)
    if "adapter_config.json" in files:
        raise ConfigError(f"`model.pretrained`: `{name}` is an adapter. Merge it into its model and save that.")
    if CONFIG not in files:
        raise ConfigError(f"`model.pretrained`: `{name}` has no `{CONFIG}`. Set the folder of a Transformers model.")
    if not any(file.endswith(_WEIGHTS) for file in files):
        others = sorted(file for file in files if file.endswith((".bin", ".pt", ".ckpt", ".h5", ".msgpack")))
        found = f" It has `{others[0]}`, which can run code when it is loaded." if others else ""
        raise ConfigError(
            f"`model.pretrained`: `{name}` has no weights in the safetensors format.{found} "
            "Load it with Transformers where you trust it, and save it with `save_pretrained`."
        )
    try:
        config = storage.read_json(os.path.join(folder, CONFIG))
    except StorageError:
        raise ConfigError(f"`model.pretrained`: `{name}/{CONFIG}` is not valid JSON. Copy the folder again.") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConfigError(f"`model.pretrained`: `{name}/{CONFIG}` names no `model_type`. Set a Transformers model.")
    _check_type(config, name)


def _check_type(config: dict[str, Any], name: str) -> None:
    """Raise `ConfigError` unless Transformers has a classifier for a configuration."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

    model_type = config["model_type"]
    if model_type not in CONFIG_MAPPING:
        advice = (
            "It brings its own code, which txclf does not run. Choose a model without `auto_map`."
            if "auto_map" in config
            else "Install a version of Transformers that knows it."
        )
        raise ConfigError(
            f"`model.pretrained`: Transformers has no model of the type `{model_type}` of `{name}`. {advice}"
        )
    if model_type not in CLASSIFIERS or config.get("is_encoder_decoder"):
        raise ConfigError(
            f"`model.pretrained`: `{name}` is a model of the type `{model_type}`, which does not classify texts. "
            "Choose an encoder, or a decoder with a classification head."
        )


def stored(found: Pretrained, name: str, root: str) -> str:
    """Copy the files of a model to `<root>/pretrained` unless they are there, and return their folder."""
    names = sorted(
        file for file in os.listdir(found.folder) if file.endswith((*TEXT_ENDINGS, _WEIGHTS)) and file != SOURCE
    )
    if os.path.exists(os.path.join(found.folder, POOLING)):
        names.append(POOLING)
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
        _copy(folder, storage.list_folder(folder), scratch, weights)
        yield scratch


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the reports of Transformers, which are made for interactive use."""
    from transformers.utils import logging as reports_

    reports: Any = reports_
    level, has_bar = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if has_bar:
            reports.enable_progress_bar()
