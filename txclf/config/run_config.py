"""The run file: YAML that is checked by frozen models. All problems are reported at once, each with its dotted key.

Precedence, lowest first: the defaults, the file, then `a.b=value` overrides of the command line.

    config = load("jobs/trec.yaml", ["train.epochs=5", "data.train=my.csv"])
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from txclf.config import recipes, yaml_text
from txclf.config.base import Section
from txclf.config.dotted import Settings, set_dotted
from txclf.config.search_space import Tune
from txclf.config.sections import Compute, Data, Distill, Generate, Model, Tokenizer, Truncation
from txclf.config.tasks import TASKS, Task, TaskSpec
from txclf.config.train import Train
from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.core.text import nearest, shown

DATA_FILE = re.compile(r"\.(csv|tsv|jsonl|ndjson|parquet)(\.(gz|zst))?$", re.IGNORECASE)
"""Ending of a file that holds data, not a run."""
SEARCHABLE = ("seed", "data", "tokenizer", "model", "train", "distill")
"""Sections and keys that a search may change."""


class RunConfig(Section):
    """Run file. The run folder is `storage`/`name`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run and of its folder: letters, digits, `.`, `_` and `-`, starting with a letter or digit.
    If it is left out, the commands `train`, `distill` and `tune` number the runs by their run file: `trec-1`, `trec-2`;
    `--resume` continues the last one."""
    storage: str = "runs"
    """Path or URI of the folder with the runs (`storage/name`) and the prepared data (`storage/prepared`). Every node
    of a cluster must reach it. A relative path starts at the working directory."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the validation split, the tokenizer sample, the shuffles, the initial weights and dropout."""
    task: Task = "classify"
    """Task of the model. `classify` gives each text one label, `multilabel` any number of labels, and `seq2seq`
    generates a text from a text."""
    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    train: Train = Train()
    distill: Distill = Distill()
    generate: Generate = Generate()
    compute: Compute = Compute()
    tune: Tune = Tune()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_task(cls, settings: Any) -> Any:
        task = settings.get("task") if isinstance(settings, dict) else None
        spec = TASKS.get(task) if isinstance(task, str) else None
        for key, value in spec.defaults if spec else ():
            section, name = key.split(".")
            found = settings.get(section, {})
            if isinstance(found, dict):
                settings = {**settings, section: {name: value, **found}}
        return settings

    @model_validator(mode="after")
    def _fits_task(self) -> Self:
        known = self.task_spec.monitors
        for key, value in (("train.monitor", self.train.monitor), ("tune.metric", self.tune.metric)):
            if value is not None and value not in known:
                raise ValueError(
                    f"`{key}: {value}` is not a metric of `task: {self.task}`. Set one of {', '.join(known)}."
                )
        for key, allowed, advice in self.task_spec.restrictions:
            section, name = key.split(".")
            value = getattr(getattr(self, section), name)
            if value not in allowed:
                shown = str(value).lower() if isinstance(value, bool) else value
                advice = advice or f"Set {' or '.join(f'`{_yaml_value(option)}`' for option in allowed)}."
                raise ValueError(f"`{key}: {shown}` is not supported with `task: {self.task}`. {advice}")
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.model.ngrams is True and self.train.train_on_valid:
            raise ValueError(
                "`model.ngrams: true` needs validation rows, which choose its weight. Remove `train.train_on_valid`."
            )
        if self.model.segment_embeddings and len(self.data.text) < 2:
            raise ValueError("`model.segment_embeddings: true` needs several text columns. Name them in `data.text`.")
        if problem := recipes.problem(self.model, self.tokenizer, self.train):
            raise ValueError(problem)
        if self.train.contrastive_steps and self.data.truncation == "windows":
            raise ValueError(
                "`train.contrastive_steps` and `data.truncation: windows` exclude each other. Remove one of them."
            )
        if self.train.pretrain_epochs and self.model.word_vectors:
            raise ValueError("`train.pretrain_epochs` and `model.word_vectors` exclude each other. Remove one of them.")
        unlabelled = [key for key in ("unlabelled", "altered_copies") if getattr(self.data, key)]
        if unlabelled and self.distill.teacher and self.train.sampling == "balanced":
            raise ValueError(
                "`train.sampling: balanced` needs a label in each row, and those of "
                f"`data.{unlabelled[0]}` have none. Set `train.sampling: shuffle`."
            )
        overlap, length = self.data.window_overlap, self.tokenizer.max_length
        if self.data.truncation == "windows" and overlap >= length:
            raise ValueError(f"`data.window_overlap` ({overlap}): set it below `tokenizer.max_length` ({length}).")
        return self

    @property
    def task_spec(self) -> TaskSpec:
        """Facts about `task`."""
        return TASKS[self.task]

    @property
    def truncation(self) -> Truncation:
        """Truncation of rows to `tokenizer.max_length` tokens."""
        windows = self.data.truncation == "windows"
        return Truncation(
            mode=self.data.truncation,
            window_overlap=self.data.window_overlap if windows else 0,
            max_windows=self.data.max_windows if windows else 1,
        )

    @property
    def num_segments(self) -> int:
        """Text columns with a segment embedding each; 0 without segment embeddings."""
        columns = len(self.data.text)
        enabled = columns > 1 if self.model.segment_embeddings is None else self.model.segment_embeddings
        return columns if enabled and not self.task_spec.is_seq2seq else 0

    @property
    def uses_ngrams(self) -> bool:
        """True if a linear model on n-grams may answer together with the network."""
        wanted = self.model.pretrained is None if self.model.ngrams == "auto" else self.model.ngrams
        return wanted and self.task_spec.has_labels and not self.train.train_on_valid

    @property
    def run_folder(self) -> str:
        """Absolute path or URI of the run folder."""
        return storage.join(storage.absolute(self.storage), self.name)


def load(path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file, apply `a.b=value` overrides and make its paths absolute.

    Without a path, the settings are the defaults and the overrides. The values of overrides are YAML. Raises
    `ConfigError` naming every key that is wrong.
    """
    return parse(read_settings(path, overrides), "command line" if path is None else os.fspath(path), overrides)


def read_settings(path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a run file and apply overrides, without checking keys and values."""
    return override({} if path is None else _read_yaml(os.fspath(path)), overrides)


def override(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of run-file settings with `a.b=value` overrides applied, without checking keys and values."""
    result = copy.deepcopy(dict(settings))
    for text in overrides:
        _apply_override(result, text)
    return result


def parse(settings: dict[str, Any], name: str = "run file", overrides: Sequence[str] = ()) -> RunConfig:
    """Check the settings of a run file and make their paths absolute.

    `name` is the source of the settings in messages, and `overrides` are those that were applied. Raises `ConfigError`
    naming every key that is wrong, and `StorageError` for a URI that holds credentials.
    """
    for text in _strings(settings):
        storage.refuse_credentials(text)
    try:
        run = RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_blamed(_problems(error, settings), name, overrides)) from None
    if problems := _space_problems(run):
        raise ConfigError(_blamed(problems, name, overrides))
    return _resolve_paths(run)


def worker_compute(workers: int, options: dict[str, Any]) -> Compute | None:
    """Return the settings of Ray, or None without workers; an option of None is not set.

    Raises `ConfigError` for an option that needs workers.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if workers:
        return parse({"compute": {"workers": workers, **options}}, "options").compute
    for key in options:
        raise ConfigError(f"--{key.replace('_', '-')}: needs Ray workers. Pass --workers with their number.")
    return None


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings of nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def with_overrides(run: RunConfig, settings: Settings) -> RunConfig:
    """Return a run with other values for dotted keys. Raises `ConfigError` naming every key that is wrong."""
    return parse(set_dotted(settings, recipes.set_keys(run)), run.name)


def _resolve_paths(run: RunConfig) -> RunConfig:
    """Return the same run with absolute paths, which mean the same in every process."""
    data = {
        split: tuple(map(storage.absolute, paths))
        for split in ("train", "valid", "test", "unlabelled", "corrections")
        if (paths := getattr(run.data, split)) is not None
    }
    file = run.tokenizer.file and storage.absolute(run.tokenizer.file)
    model: dict[str, str | None] = {}
    if run.model.word_vectors is not None:
        model["word_vectors"] = storage.absolute(run.model.word_vectors)
    if run.model.pretrained is not None and storage.exists(run.model.pretrained):  # otherwise an id of the hub
        model["pretrained"] = storage.absolute(run.model.pretrained)
    teacher = run.distill.teacher and storage.absolute(run.distill.teacher)
    return run.model_copy(
        update={
            "storage": storage.absolute(run.storage),
            "data": run.data.model_copy(update=data),
            "tokenizer": run.tokenizer.model_copy(update={"file": file} if file else {}),
            "model": run.model.model_copy(update=model),
            "distill": run.distill.model_copy(update={"teacher": teacher} if teacher else {}),
        }
    )


def dump(config: RunConfig) -> str:
    """Return the resolved run file as YAML, with every key; of a pretrained run, with those that are settled."""
    return yaml_text.written(recipes.set_keys(config, mode="json"))


def schema() -> str:
    """Return the JSON Schema of the run file, for editors."""
    return json.dumps(RunConfig.model_json_schema(), indent=2)


def _read_yaml(path: str) -> dict[str, Any]:
    if not storage.exists(path):
        if "=" in path:
            raise ConfigError(f"`{path}`: a setting in the place of the run file. Pass the run file before settings.")
        raise ConfigError(f"`{path}`: no such run file. Check the path.")
    if DATA_FILE.search(path):
        raise ConfigError(
            f"`{path}`: a data file, not a run file. Write a run file for it with `txclf init {shlex.quote(path)}`."
        )
    try:
        settings = yaml_text.parse(storage.read_bytes(path, yaml_text.MAX_BYTES + 1))
    except yaml_text.YamlError as error:
        raise ConfigError(f"`{path}`: not valid YAML: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(
            f"`{path}`: expected keys and values, found {type(settings).__name__}. Write `key: value` lines."
        )
    return settings


def _apply_override(settings: dict[str, Any], text: str) -> None:
    """Set the value of an `a.b=value` override in nested settings."""
    dotted, equals, value_text = text.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"`{text}`: not an override. Write `key=value`, as in `train.epochs=5`.")
    try:
        value = yaml_text.parse(value_text)
    except yaml_text.YamlError as error:
        raise ConfigError(f"`{text}`: the value is not valid YAML: {error}") from None
    *parents, last = dotted.split(".")
    if len(parents) >= yaml_text.MAX_DEPTH:
        raise ConfigError(f"`{shown(text)}`: more than {yaml_text.MAX_DEPTH} levels of keys. Check the key.")
    section = settings
    for parent in parents:
        inner = section.get(parent)
        if inner is None:
            inner = section[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"`{text}`: `{parent}` is a value, not a section. Set `{parent}` itself.")
        section = inner
    section[last] = value


# ------------------------------------------------------------------------------------------------------------ problems


def _space_problems(run: RunConfig) -> list[str]:
    """Return the problems of the values in the search space, each value checked by itself."""
    settings = recipes.set_keys(recipes.with_recipe(run, recipes.SMALL_ROWS, 2), exclude={"tune"})
    problems = []
    for key, value in run.tune.probes():
        parts = key.split(".")
        if (
            parts[0] not in SEARCHABLE
            or len(parts) > yaml_text.MAX_DEPTH
            or key in ("train.monitor", "distill.teacher")
        ):
            problems.append(f"`tune.space.{key}`: cannot be searched. Name a key of {', '.join(SEARCHABLE)}.")
            continue
        try:
            RunConfig.model_validate(set_dotted({key: value}, settings))
        except ValidationError as error:
            # Problems of a whole section concern several keys, and may vanish with another draw of the others.
            problems += _problems(error, set_dotted({key: value}, {}), prefix="tune.space.", below=parts)
        except (TypeError, ValueError):  # a part before the last is a value
            problems.append(f"`tune.space.{key}`: unknown key. Name a key of the run file, with dots.")
    return list(dict.fromkeys(problems))


def _problems(
    error: ValidationError, settings: dict[str, Any], *, prefix: str = "", below: Sequence[str] = ()
) -> list[str]:
    """Return one line per problem, each with its dotted key.

    `prefix` goes before each key. `below` are the parts of a key: problems elsewhere are left out.
    """
    lines = []
    for problem in error.errors(include_url=False):
        parts = [str(part) for part in problem["loc"]]
        if parts[: len(below)] != list(below):
            continue
        key = prefix + (".".join(_user_keys(parts, settings)) or "run file")
        if problem["type"] == "extra_forbidden":
            lines.append(f"`{key}`: unknown key. {_known_keys(parts)}")
        elif problem["type"] == "literal_error":
            near = nearest(problem["input"], re.findall(r"'([^']+)'", problem["ctx"]["expected"])).rstrip()
            advice = f". {near}" if near else ""
            lines.append(
                f"`{key}`: input should be {problem['ctx']['expected']}, not {shown(repr(problem['input']))}{advice}"
            )
        elif problem["type"] == "value_error":
            lines.append(f"`{key}`: {problem['ctx']['error']}")
        else:
            value = "" if isinstance(problem["input"], dict) else f", not {shown(repr(problem['input']))}"
            lines.append(f"`{key}`: {problem['msg'][0].lower()}{problem['msg'][1:]}{value}")
    return list(dict.fromkeys(lines))


def _blamed(problems: list[str], name: str, overrides: Sequence[str]) -> str:
    """Return problems as a message that names the file, or the overrides if all of them come from there."""
    lines, from_file = [], False
    for problem in problems:
        key = problem[1:].partition("`")[0]
        words = [word for word in overrides if _concerns(word.partition("=")[0], key, problem)]
        from_file = from_file or not words
        lines.append(problem + (f" (command line: `{shown(words[-1])}`)" if words and name != "command line" else ""))
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return f"`{name if from_file else 'command line'}` has {count}:\n" + "\n".join(f"  {line}" for line in lines)


def _concerns(dotted: str, key: str, problem: str) -> bool:
    """Return True if a problem of `key` comes from the override of a dotted key."""
    key = key.removeprefix("tune.space.") if not dotted.startswith("tune.") else key
    return f"{key}.".startswith(f"{dotted}.") or f"{dotted}.".startswith(f"{key}.") or f"`{dotted}" in problem


def _yaml_value(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _user_keys(parts: list[str], settings: Any) -> list[str]:
    """Return the parts of a location that the user wrote.

    Pydantic adds the branches of unions, and items that are missing.
    """
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
    """Name the known key closest to an unknown one, and all known keys of its section."""
    section: type[BaseModel] = RunConfig
    for part in parts[:-1]:
        if part in section.model_fields:  # otherwise the part is a key of a mapping
            annotation = section.model_fields[part].annotation
            inner: Any = get_args(annotation)[-1] if get_args(annotation) else annotation
            section = inner
    known = list(section.model_fields)
    return f"{nearest(parts[-1], known)}Known keys: {', '.join(known)}."
