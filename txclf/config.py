"""The run file: YAML checked by frozen models, every problem reported at once with its dotted key.

Precedence, lowest first: the defaults below, the file, then `a.b=value` words of the command line.

    config = load("jobs/trec.yaml", ["train.epochs=5", "data.train=my.csv"])
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Hashable, Sequence
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from txclf import storage
from txclf.errors import ConfigError


class Section(BaseModel):
    """A part of the run file: frozen, and without room for unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


# The schema, for editors, knows the bare string too.
Strings = BeforeValidator(_as_list, json_schema_input_type=str | Annotated[tuple[str, ...], Field(min_length=1)])


def _text_keys(value: object) -> object:
    """Labels that YAML reads as numbers or booleans, as they are named in the data."""
    if not isinstance(value, dict):
        return value
    return {str(key).lower() if isinstance(key, bool) else str(key): weight for key, weight in value.items()}


Paths = Annotated[tuple[str, ...], Strings, Field(min_length=1)]
Columns = Annotated[tuple[str, ...], Strings, Field(min_length=1)]
Weights = dict[str, Annotated[float, Field(ge=0.0)]]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Data(Section):
    """Where the labelled rows are."""

    train: Paths | None = None
    """Training files: a path, glob, folder or URI, or a list of them. csv, tsv, jsonl, parquet (also .gz, .zst), or a
    folder of `<label>/<file>.txt`."""
    valid: Paths | None = None
    """Validation files; without them `valid_fraction` of the training rows is set aside."""
    test: Paths | None = None
    """Test files, scored by `txclf evaluate` and by nothing else."""
    valid_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the training rows set aside for validation, by a hash of the text: duplicates never straddle the two."""
    text: Columns = ("text",)
    """Column that holds the text, or a list of columns that become one sequence with a separator token between."""
    label: str = "label"
    """Column that holds the label: strings, integers or booleans."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """`fail` stops with the first twenty bad rows; `skip` leaves each out and writes it to `rejected.jsonl`."""


class Tokenizer(Section):
    """How text becomes token ids. Trained on the train split, unless `file` is given."""

    kind: Literal["bpe", "wordpiece", "unigram", "word", "file"] = "bpe"
    """`bpe` (bytes, no unknown token), `wordpiece`, `unigram`, `word` (whole words), or `file`. Trained twice on
    the same text, `bpe` and `word` come out the same; the `tokenizers` library does not promise it of the other two."""
    vocab_size: Annotated[int, Field(ge=16, le=1_000_000)] = 16_000
    """Most tokens in the vocabulary, special tokens included."""
    lowercase: bool = True
    """Whether text is lower-cased first."""
    normalize: Literal["none", "nfc", "nfkc"] = "nfc"
    """Unicode normal form applied first."""
    max_length: Annotated[int, Field(ge=1, le=65_536)] = 256
    """Tokens kept of a text; the rest is cut and counted in the manifest."""
    min_frequency: Annotated[int, Field(ge=1)] = 2
    """Occurrences that a token needs to enter the vocabulary."""
    training_megabytes: Annotated[int, Field(ge=1)] = 200
    """Size of the training files above which the tokenizer learns from a sample of them, drawn by the seed."""
    file: str | None = None
    """A `tokenizer.json` of the `tokenizers` library, for `kind: file`."""

    @model_validator(mode="after")
    def _file_goes_with_kind(self) -> Self:
        if (self.kind == "file") != (self.file is not None):
            raise ValueError("`kind: file` and `file: PATH` go together: set both or neither")
        return self


class Model(Section):
    """The transformer encoder and its head."""

    layers: Annotated[int, Field(ge=1)] = 2
    """Encoder blocks."""
    width: Annotated[int, Field(ge=1)] = 128
    """Size of a token's vector."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Attention heads; they divide `width`."""
    feedforward: Annotated[int, Field(ge=1)] = 512
    """Hidden size of a block's feed-forward part."""
    dropout: Fraction = 0.1
    """Dropout on each residual branch and in the head."""
    attention_dropout: Fraction = 0.0
    """Dropout on attention weights; 0 lets attention take its fastest kernel."""
    embedding_dropout: Fraction | None = None
    """Dropout on the embedded tokens; null = `dropout`."""
    positions: Literal["rotary", "sinusoidal", "learned", "none"] = "rotary"
    """Rotary (arXiv:2104.09864), sinusoidal (arXiv:1706.03762), learned, or none."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before each branch (arXiv:2002.04745) or after the sum."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Of the feed-forward part and of the head."""
    pooling: Literal["mean", "max", "mean_max", "cls", "attention"] = "mean"
    """How real tokens become one vector; `mean_max` puts the two side by side, `cls` a learned vector in front."""
    head_width: Annotated[int, Field(ge=0)] = 0
    """Hidden size of the head; 0 = one linear layer."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"`heads` ({self.heads}) must divide `width` ({self.width})")
        if self.positions == "rotary" and (self.width // self.heads) % 2:
            raise ValueError(f"`positions: rotary` needs an even width / heads, not {self.width // self.heads}")
        if self.positions == "sinusoidal" and self.width % 2:
            raise ValueError(f"`positions: sinusoidal` needs an even `width`, not {self.width}")
        return self


class Train(Section):
    """Optimization, validation and checkpoints."""

    epochs: Annotated[int, Field(ge=1)] = 3
    """Passes over the training rows."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows per optimizer step, over all workers and accumulated parts together."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Parts into which each worker cuts its share of a batch, to save memory; the step stays the same."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled weight decay (arXiv:1711.05101), on weight matrices only: not on norms, biases or embeddings."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    schedule: Literal["one_cycle", "cosine", "linear", "constant"] = "one_cycle"
    """Learning rate over the steps: warm-up to the peak, then down by a cosine, a line, or not at all."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps spent warming up."""
    start_factor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.04
    """Learning rate of the first step, as a share of the peak."""
    end_factor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Learning rate at the end of a falling schedule, as a share of the peak."""
    clip_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Gradient norm above which gradients are scaled down; 0 = never."""
    average: Fraction = 0.0
    """Decay of an exponential moving average of the weights, which is then what is validated and bundled; 0 = none."""
    class_weights: Literal["none", "balanced"] | Annotated[Weights, BeforeValidator(_text_keys)] = "none"
    """`balanced` weighs a class by rows / (classes x its rows); a mapping gives each label's weight (default 1)."""
    token_dropout: Fraction = 0.0
    """Share of a row's tokens left out each time it is trained on (word dropout); at least one stays."""
    label_smoothing: Fraction = 0.0
    """Probability mass spread over all classes (arXiv:1512.00567)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the hardware multiplies it fast (CUDA, AMX, AVX512-BF16), fp32 elsewhere."""
    compile: bool = False
    """Whether `torch.compile` is applied to the model."""
    monitor: Literal["valid_loss", "valid_accuracy", "valid_f1_macro"] = "valid_loss"
    """What ranks validations: for the best checkpoint, and so for the bundle."""
    patience: Annotated[int, Field(ge=0)] = 5
    """Validations without a better `monitor` after which the run stops; 0 = never."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 3
    """Best checkpoints kept, beside the last."""
    eval_every: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of an epoch between validations."""
    log_every_steps: Annotated[int, Field(ge=1)] = 50
    """Optimizer steps between lines in `metrics.jsonl` and TensorBoard."""
    window_batches: Annotated[int, Field(ge=1)] = 32
    """Batches sorted by length together: more = less padding, less mixing."""


class Compute(Section):
    """Where it runs."""

    workers: Annotated[int, Field(ge=0)] = 0
    """0 = in this process, Ray is not started; N = Ray Train with N workers."""
    cpus_per_worker: Annotated[float, Field(gt=0.0)] = 1
    """CPUs of a worker; with `workers: 0` every core is used."""
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = 0
    """GPUs of a worker."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker failures after which a Ray run gives up; before, it goes on from the last checkpoint."""
    address: str | None = None
    """Ray cluster to join (`auto`, `host:port`); null = `RAY_ADDRESS` if set, else a local Ray for this run."""


class RunConfig(Section):
    """A run file. The run folder is `storage`/`name`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run and of its folder."""
    storage: str = "runs"
    """Path or URI, reachable from every node, under which runs and prepared data lie."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the split, the shuffles, the initial weights and dropout."""
    task: Literal["classify"] = "classify"
    """One label per text."""
    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    train: Train = Train()
    compute: Compute = Compute()

    @property
    def run_folder(self) -> str:
        """Absolute path or URI of the run folder."""
        return storage.join(storage.absolute(self.storage), self.name)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-3` as a number (YAML 1.2) and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key `{key}` is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a string which `_Loader` would take for a number: a run may be called `12e4`."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def load(path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run file (None: the defaults alone) and lays `a.b=value` words over it. Values are YAML.

    Raises `ConfigError` naming every key that is wrong.
    """
    name = "command line" if path is None else os.fspath(path)
    settings: dict[str, Any] = {} if path is None else _read_yaml(os.fspath(path))
    for word in overrides:
        _override(settings, word)
    return parse(settings, name)


def parse(settings: dict[str, Any], name: str = "run file") -> RunConfig:
    """Checks settings as they stand in a run file. Raises `ConfigError` naming every key that is wrong."""
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"`{name}` has {_problems(error, settings)}") from None


def anchored(run: RunConfig) -> RunConfig:
    """The same run with every path absolute, so that it means the same in any process, whatever its directory."""
    data = {
        split: tuple(map(storage.absolute, paths))
        for split in ("train", "valid", "test")
        if (paths := getattr(run.data, split)) is not None
    }
    file = run.tokenizer.file and storage.absolute(run.tokenizer.file)
    return run.model_copy(
        update={
            "storage": storage.absolute(run.storage),
            "data": run.data.model_copy(update=data),
            "tokenizer": run.tokenizer.model_copy(update={"file": file}),
        }
    )


def dump(config: RunConfig) -> str:
    """The resolved run file as YAML, every key written out."""
    settings = config.model_dump(mode="json")
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def schema() -> str:
    """JSON Schema of the run file, for editors."""
    return json.dumps(RunConfig.model_json_schema(), indent=2)


def _read_yaml(path: str) -> dict[str, Any]:
    if not storage.exists(path):
        raise ConfigError(f"`{path}`: no such run file")
    try:
        settings = yaml.load(storage.read_bytes(path).decode(), Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2024-99-99
        raise ConfigError(f"`{path}`: not valid YAML: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"`{path}`: expected keys and values, found {type(settings).__name__}")
    return settings


def _override(settings: dict[str, Any], word: str) -> None:
    dotted, equals, text = word.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"`{word}`: expected `key=value`, as in `train.epochs=5`")
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"`{word}`: the value is not valid YAML: {error}") from None
    *parents, last = dotted.split(".")
    place = settings
    for parent in parents:
        inner = place.get(parent)
        if inner is None:
            inner = place[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"`{word}`: `{parent}` is a value, not a section")
        place = inner
    place[last] = value


def _problems(error: ValidationError, settings: dict[str, Any]) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        parts = [str(part) for part in problem["loc"]]
        key = ".".join(_written(parts, settings)) or "run file"
        if problem["type"] == "extra_forbidden":
            lines.append(f"`{key}`: unknown key; {_known_keys(parts)}")
        elif problem["type"] == "value_error":
            lines.append(f"`{key}`: {problem['ctx']['error']}")
        else:
            given = "" if isinstance(problem["input"], dict) else f", not {problem['input']!r}"
            lines.append(f"`{key}`: {problem['msg'][0].lower()}{problem['msg'][1:]}{given}")
    lines = list(dict.fromkeys(lines))
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return count + ":\n" + "\n".join(f"  {line}" for line in lines)


def _written(parts: list[str], settings: Any) -> list[str]:
    """What the user wrote of a place: pydantic adds the branches of unions, and items that are wanting."""
    kept: list[str] = []
    for part in parts:
        if isinstance(settings, dict) and part in settings:
            settings = settings[part]
        elif isinstance(settings, list) and part.isdecimal() and int(part) < len(settings):
            settings = settings[int(part)]
        else:
            continue
        kept.append(part)
    return kept


def _known_keys(parts: list[str]) -> str:
    section: type[BaseModel] = RunConfig
    for part in parts[:-1]:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type)
        section = annotation
    return "known here: " + ", ".join(section.model_fields)
