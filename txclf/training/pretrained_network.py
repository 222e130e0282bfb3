"""The network of a run that fine-tunes a pretrained model.

Rank 0 reads the weights from the copy in the storage of the run and sends them to the other ranks. A resumed run needs
the configuration alone, because its checkpoint has all weights.
"""

from __future__ import annotations

from typing import Any

import torch

from txclf import pretrained
from txclf.config import recipes
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError
from txclf.data.shards import Manifest
from txclf.inference import transformers_folder
from txclf.model.pretrained import PretrainedClassifier, is_fine_tuned, read_config, with_sizes
from txclf.pretrained import Pretrained
from txclf.training import shared_checkpoint


def config_of(folder: str, run: RunConfig, manifest: Manifest) -> Any:
    """Return the configuration of a pretrained model for the labels of a run."""
    assert manifest.special_tokens is not None
    return read_config(
        folder,
        run.model,
        labels=manifest.labels,
        is_multilabel=run.task_spec.is_multilabel,
        pad=manifest.special_tokens.pad,
    )


def network(
    stored: str, run: RunConfig, manifest: Manifest, *, world_size: int = 1, resumed: bool = False
) -> PretrainedClassifier:
    """Return the network of a stored model; with `resumed`, without its weights. All ranks call it together.

    Raises `ConfigError` on every rank if weights are missing or damaged.
    """
    with pretrained.local_copy(stored, weights=False) as folder:
        config = config_of(folder, run, manifest)
    if resumed:
        return PretrainedClassifier(config, run.model)

    loaded: list[PretrainedClassifier] = []  # on rank 0

    def read() -> tuple[dict[str, Any], list[str]]:
        with pretrained.local_copy(stored, weights=True) as folder:
            loaded.append(PretrainedClassifier.load(folder, config, run.model))
        return loaded[0].state_dict(), []

    state, _ = shared_checkpoint.shared(read, world_size)
    model = loaded[0] if loaded else PretrainedClassifier(config, run.model)
    if not loaded:
        model.load_state_dict(state)
    torch.manual_seed(run.seed)  # the ranks have drawn different amounts of random numbers
    return model


def bundle_files(stored: str, run: RunConfig, manifest: Manifest) -> dict[str, bytes]:
    """Return the files that make the bundle of a run a folder of Transformers, without weights and tokenizer."""
    with pretrained.local_copy(stored, weights=False) as folder:
        return transformers_folder.files(
            folder, config_of(folder, run, manifest), run.tokenizer.max_length, run.truncation
        )


def store(run: RunConfig) -> Pretrained:
    """Copy the pretrained model of a run to the storage, and return the copy.

    Raises `ConfigError` if the model is not found or cannot be used.
    """
    name = run.model.pretrained
    assert name is not None
    with pretrained.located(name, run.model.revision) as found:
        return Pretrained(pretrained.stored(found, name, run.storage), found.commit)


def settled(run: RunConfig, manifest: Manifest, copy: Pretrained | None = None) -> tuple[RunConfig, str]:
    """Return a run with all its settings and the folder of its pretrained model, which is stored unless it is given.

    The rows give the settings of the recipe, the model its sizes and its commit.
    """
    stored, commit = copy or store(run)
    with pretrained.local_copy(stored, weights=False) as folder:
        config = config_of(folder, run, manifest)
        model, is_tuned = with_sizes(run.model, config), is_fine_tuned(folder, config)
    if run.train.contrastive_steps and model.pooling != "mean":
        raise ConfigError(
            "`train.contrastive_steps` is for encoders that pool by the mean of the tokens, such as those of "
            "sentence-transformers. Set `model.pooling: mean`, or remove the key."
        )
    run = run.model_copy(update={"model": model.model_copy(update={"revision": commit} if commit else {})})
    rows, labels = manifest.splits["train"].rows, len(manifest.labels)
    if not is_tuned:  # a fine-tuned encoder has learned more than a few rows teach
        run = recipes.with_pairs(run, rows, labels)
    return recipes.with_recipe(run, rows, labels), stored
