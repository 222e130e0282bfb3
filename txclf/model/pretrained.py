"""Classifier made of a pretrained model: a network of Transformers with a new head.

Its dropout and, on a CPU, its attention are those of txclf, which compute the same faster. Mean pooling is saved in a
form that Transformers has. Everything else is left as it is there, so the weights can be loaded there again.

Shapes: B sequences, T tokens, C classes, H heads, E head width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from txclf import pretrained
from txclf.config.sections import Model
from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.model import mean_pooling, pretrained_attention
from txclf.model.dropout import Dropout

_DROPOUTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "dropout",
        (
            *("hidden_dropout_prob", "dropout", "mlp_dropout", "embedding_dropout", "resid_pdrop", "embd_pdrop"),
            *("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "cls_dropout", "pooler_dropout"),
        ),
    ),
    ("attention_dropout", ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")),
)
"""Keys of `model` and their names in the configurations of Transformers."""
_AFTER_LAYERS = ("final_layer_norm", "project_out")
"""Modules after the layers that OPT registers before them."""
_SIZES = {"num_layers": "num_hidden_layers", "hidden_size": "hidden_size", "num_heads": "num_attention_heads"}
"""Keys of `model` and their names in a configuration of Transformers."""


class PretrainedClassifier(nn.Module):
    """Classifier on a pretrained model: `forward(input_ids (B, T), mask (B, T) or None)` returns logits (B, C).

    It has the interface of `TransformerClassifier`. `config` is a configuration of Transformers.
    """

    def __init__(self, config: Any, settings: Model | None = None) -> None:
        super().__init__()
        from transformers import AutoModelForSequenceClassification

        with pretrained.quiet():
            make: Any = AutoModelForSequenceClassification.from_config
            self.network = make(
                mean_pooling.without(config), dtype=torch.float32, **pretrained_attention.option(config)
            )
        if mean_pooling.is_used(config):
            mean_pooling.attach(self.network, self.last_layer)
        self.frozen: list[nn.Module] = []
        self.notes: list[str] = []
        """Messages for the user about the weights that were read."""
        self._adapt(settings or Model())

    @classmethod
    def load(cls, folder: str, config: Any, settings: Model) -> Self:
        """Return a classifier with the weights of a folder. The head is kept only if its labels are those of `config`.

        Raises `ConfigError` if the weights of a layer are missing or of another shape, or if the network cannot be
        used.
        """
        from transformers import AutoModelForSequenceClassification

        loader: Any = AutoModelForSequenceClassification
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        with pretrained.quiet():
            try:
                model.network, info = loader.from_pretrained(
                    folder,
                    config=mean_pooling.without(config),
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    dtype=torch.float32,
                    **pretrained_attention.option(config),
                )
            except Exception as error:  # safetensors and Transformers raise several kinds for damaged files
                raise ConfigError(
                    f"`model.pretrained`: the weights of `{settings.pretrained}` cannot be loaded: "
                    f"{_first_line(error)} Copy the folder again."
                ) from None
        model.frozen = []
        new = model._check(info, settings)
        last = model.last_layer
        if not new & {f"{last}.weight"} and not _is_for_labels(folder, config):
            _initialize(model.network, model.network.get_submodule(last))
            new |= {name for name, _ in model.network.named_parameters() if name.rpartition(".")[0] == last}
        unused = set(info["unexpected_keys"])
        if mean_pooling.is_used(config):
            mean_pooling.attach(model.network, last)
            try:
                mean_pooling.require_constant(folder, model.network)
            except ValueError as error:
                raise ConfigError(f"`model.pretrained`: {error}.") from None
            if f"{last}.weight" not in new:
                model.network.load_state_dict(mean_pooling.imported(model.network.state_dict(), model.network, last))
            unused = {name for name in unused if not name.startswith(mean_pooling.layer_prefix(model.network))}
        model.notes = [f"pretrained weights: new {_shortened(sorted(new))}; not used {_shortened(sorted(unused))}"]
        model._renew(settings.reinitialize_layers)
        model._adapt(settings)
        model._try(settings)
        return model

    def _check(self, info: Mapping[str, Any], settings: Model) -> set[str]:
        """Return the names of weights that start at random. Raise `ConfigError` if others than the head's do."""
        mismatched = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]}
        depths, missing = self.depths(), set(info["missing_keys"])
        for names, problem in ((missing, "lacks weights"), (mismatched, "has other shapes than `config.json` says")):
            if lost := sorted(name for name in names if depths.get(name) is not None):
                raise ConfigError(
                    f"`model.pretrained`: `{settings.pretrained}` {problem}, of its layers: {_shortened(lost)}. "
                    "Copy the folder again, or correct its `config.json`."
                )
        return missing | mismatched

    def _try(self, settings: Model) -> None:
        """Raise `ConfigError` if the network does not run, or if padding changes its logits."""
        pad, is_training = self.network.config.pad_token_id, self.training
        tokens = [token for token in range(self.embedding.num_embeddings) if token != pad]
        ids = torch.tensor([tokens[len(tokens) // 3 :][:6]])
        padded = torch.cat([ids, torch.full_like(ids, pad)], dim=1)
        self.eval()
        try:
            with torch.no_grad():
                alone, beside = self(ids), self(padded, padded != pad)
        except Exception as error:  # architectures raise any kind
            raise ConfigError(
                f"`model.pretrained`: `{settings.pretrained}` does not run as a classifier: {_first_line(error)} "
                "Choose a model of another architecture."
            ) from None
        self.train(is_training)
        if not alone.isfinite().all():
            raise ConfigError(
                f"`model.pretrained`: the logits of `{settings.pretrained}` are not finite numbers, so its weights are "
                "damaged. Copy or download them again."
            )
        if (alone - beside).abs().max() > 0.01 * alone.abs().max():
            raise ConfigError(
                f"`model.pretrained`: padding changes the logits of `{settings.pretrained}`, so a row would depend on "
                "the others of its batch. Choose a model of another architecture."
            )

    def _renew(self, top_layers: int) -> None:
        """Start the top layers from random weights."""
        layers = self.blocks
        if top_layers > len(layers):
            raise ConfigError(
                f"`model.reinitialize_layers` ({top_layers}): the model has only {len(layers)} layers. Lower the key."
            )
        for layer in layers[len(layers) - top_layers :]:
            _initialize(self.network, layer)

    def _adapt(self, settings: Model) -> None:
        for module in list(self.network.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Dropout:
                    setattr(module, name, Dropout(child.p))
        self.network.config.use_cache = False  # of keys and values, for generating text
        if settings.gradient_checkpointing:
            try:
                self.network.activation_checkpointing_enable()
            except ValueError as error:
                raise ConfigError(f"`model.gradient_checkpointing`: {error} Remove the key.") from None
        self._freeze(settings.freeze, settings.reinitialize_layers)

    def _freeze(self, freeze: str | int, top_layers: int) -> None:
        """Freeze the parameters up to a depth, and take the modules that are frozen as a whole out of training."""
        count = len(self.blocks)
        if isinstance(freeze, int) and freeze > count:
            raise ConfigError(f"`model.freeze` ({freeze}) is more than the {count} layers of the model. Lower it.")
        deepest = freeze if isinstance(freeze, int) else {"none": -1, "embeddings": 0, "encoder": count}[freeze]
        if top_layers and deepest > count - top_layers:
            raise ConfigError(
                f"`model.freeze` would freeze layers with the random weights of `model.reinitialize_layers` "
                f"({top_layers}). Remove one of them."
            )
        depths = self.depths()
        for name, parameter in self.network.named_parameters():
            depth = depths[name]
            if depth is not None and depth <= deepest:
                parameter.requires_grad_(False)
        if deepest >= 0:
            for module in self.network.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    self.frozen.append(module)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the encoder. One that shares its weights among all layers, as ALBERT does, counts as one."""
        count = self.network.config.num_hidden_layers
        base = self.network.base_model
        lists = [module for module in base.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
        if lists:
            return [layer for layer in lists[0] if not isinstance(layer, mean_pooling.MeanLayer)]
        return [base.encoder] if isinstance(getattr(base, "encoder", None), nn.Module) else []

    @property
    def last_layer(self) -> str:
        """The name of the linear layer that gives the logits. Raises `ConfigError` if there is none."""
        classes, depths = self.network.config.num_labels, self.depths()
        layers = [
            name
            for name, module in self.network.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == classes and depths[f"{name}.weight"] is None
        ]
        if not layers:
            raise ConfigError(
                f"`model.pretrained`: a `{type(self.network).__name__}` has no linear layer that gives the logits. "
                "Choose a model of another architecture."
            )
        return str(layers[-1])

    @property
    def embedding(self) -> nn.Embedding:
        """The token embeddings."""
        module: nn.Embedding = self.network.get_input_embeddings()
        return module

    def depths(self) -> dict[str, int | None]:
        """Return the depth of each parameter by its name in `network`: 0 for embeddings, then the layers.

        The head has None. What follows the layers, such as a last norm, belongs to the top layer. Embeddings of
        relative positions count as embeddings.
        """
        blocks, base_model = self.blocks, self.network.base_model
        layer_of = {id(parameter): i for i, block in enumerate(blocks, 1) for parameter in block.parameters()}
        base = {id(parameter) for parameter in base_model.parameters()}
        embeddings = {id(module.weight) for module in base_model.modules() if isinstance(module, nn.Embedding)}
        pooler = getattr(base_model, "pooler", None)
        pooled = {id(parameter) for parameter in pooler.parameters()} if isinstance(pooler, nn.Module) else set()
        depths: dict[str, int | None] = {}
        outside = 0
        for name, parameter in self.network.named_parameters():
            key = id(parameter)
            if key not in base or key in pooled:
                depths[name] = None
            elif key in layer_of:
                depths[name] = layer_of[key]
                outside = len(blocks)
            else:
                is_last = any(part in _AFTER_LAYERS for part in name.split("."))
                depths[name] = 0 if key in embeddings else len(blocks) if is_last else outside
        return depths

    def layer_depths(self) -> dict[str, int | None]:
        """Return `depths` by the name of the parameter in this module."""
        return {f"network.{name}": depth for name, depth in self.depths().items()}

    def train(self, mode: bool = True) -> Self:
        """Set training mode; what is frozen stays in evaluation mode, without dropout."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(
        self, input_ids: Tensor, mask: Tensor | None = None, shift: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        types = {} if segments is None else {"token_type_ids": segments}
        attention_mask = None if mask is None else mask.long()
        with _shifted(self.embedding, shift):
            logits: Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits.float()


@contextmanager
def _shifted(embedding: nn.Embedding, shift: Tensor | None) -> Iterator[None]:
    """Add a shift to the vectors that a module returns; `inputs_embeds` would change the positions of RoBERTa."""
    if shift is None:
        yield
        return
    hook = embedding.register_forward_hook(lambda module, ids, vectors: vectors + shift)
    try:
        yield
    finally:
        hook.remove()


def read_config(folder: str, settings: Model, *, labels: Sequence[str], is_multilabel: bool, pad: int) -> Any:
    """Return the configuration of a folder for these labels, with the dropout that the run file sets.

    The weights are float32, whatever type the folder has them in.
    """
    from transformers import AutoConfig

    pretrained.require_package()
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.dtype = torch.float32
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "multi_label_classification" if is_multilabel else "single_label_classification"
    if config.pad_token_id is None:
        config.pad_token_id = pad
    for key, names in _DROPOUTS:
        if key in settings.model_fields_set:
            for name in names:
                if hasattr(config, name):
                    setattr(config, name, getattr(settings, key))
    try:
        if mean_pooling.wanted(folder, config, settings.pooling if "pooling" in settings.model_fields_set else None):
            mean_pooling.use(config)
    except ValueError as error:
        raise ConfigError(f"`model.pooling`: {error}.") from None
    return config


def with_sizes(settings: Model, config: Any) -> Model:
    """Return the settings with the sizes and the pooling of a pretrained model.

    Raises `ConfigError` if a run file sets other sizes.
    """
    sizes = {key: getattr(mean_pooling.without(config), name) for key, name in _SIZES.items()}
    # Some architectures name it otherwise; 4 is what those without a name multiply by.
    inner = (getattr(config, name, None) for name in ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim"))
    sizes["intermediate_size"] = next(filter(None, inner), 4 * config.hidden_size)
    for key in settings.model_fields_set & sizes.keys():
        if getattr(settings, key) != sizes[key]:
            raise ConfigError(
                f"`model.{key}` ({getattr(settings, key)}) is not that of `model.pretrained` ({sizes[key]}). Remove it."
            )
    return settings.model_copy(update={**sizes, "pooling": "mean" if mean_pooling.is_used(config) else "cls"})


def _is_for_labels(folder: str, config: Any) -> bool:
    """Return True if the model of a folder was fine-tuned for the labels, in their order, and pooling of `config`."""
    saved = storage.read_json(os.path.join(folder, pretrained.CONFIG))
    labels = {int(number): label for number, label in (saved.get("id2label") or {}).items()}
    is_same = labels == config.id2label and saved.get("problem_type") in (None, config.problem_type)
    return is_same and saved.get(mean_pooling.KEY) == getattr(config, mean_pooling.KEY, None)


def is_fine_tuned(folder: str, config: Any) -> bool:
    """Return True if the model of a folder is a bundle of txclf, or was fine-tuned for the labels of `config`."""
    return mean_pooling.KEY in storage.read_json(os.path.join(folder, pretrained.CONFIG)) or _is_for_labels(
        folder, config
    )


def _initialize(network: Any, module: nn.Module) -> None:
    """Give a part of a network new random weights, as its architecture prescribes."""
    for part in module.modules():
        for mark in (part, *part.parameters(recurse=False)):
            vars(mark).pop("_is_hf_initialized", None)
        network._init_weights(part)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _shortened(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(f"`{name}`" for name in names[:shown]) + more if names else "none"
