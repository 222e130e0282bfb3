"""The run file: YAML checked by frozen models, every problem reported at once with its dotted key.

Precedence, lowest first: the defaults below, the file, then `a.b=value` words of the command line.

    config = load("jobs/trec.yaml", ["train.epochs=5", "data.train=my.csv"])
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from txclf.config.dotted import Settings, set_dotted
from txclf.config.search_space import Tune
from txclf.config.sections import Compute, Data, Generate, Model, Section, Tokenizer, Train, Truncation
from txclf.config.tasks import TASKS, Task, TaskSpec
from txclf.core import storage
from txclf.core.errors import ConfigError

SEARCHED = ("seed", "data", "tokenizer", "model", "train")
"""What a search may change."""


class RunConfig(Section):
    """A run file. The run folder is `storage`/`name`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run and of its folder."""
    storage: str = "runs"
    """Path or URI, reachable from every node, under which runs and prepared data lie."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the split, the shuffles, the initial weights and dropout."""
    task: Task = "classify"
    """`classify`: one label per text; `multilabel`: any number of labels per text; `seq2seq`: a text from a text."""
    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    train: Train = Train()
    generate: Generate = Generate()
    compute: Compute = Compute()
    tune: Tune = Tune()

    @model_validator(mode="after")
    def _fits_task(self) -> Self:
        known = self.task_spec.monitors
        for key, value in (("train.monitor", self.train.monitor), ("tune.metric", self.tune.metric)):
            if value is not None and value not in known:
                raise ValueError(f"`{key}: {value}` is not of `task: {self.task}`, which has {', '.join(known)}")
        for key, allowed, advice in self.task_spec.restrictions:
            section, name = key.split(".")
            value = getattr(getattr(self, section), name)
            if value not in allowed:
                shown = str(value).lower() if isinstance(value, bool) else value
                raise ValueError(f"`{key}: {shown}` does not go with `task: {self.task}`{advice}")
        if self.model.word_vectors is not None and self.tokenizer.kind not in ("word", "file"):
            raise ValueError(
                f"`model.word_vectors` are of words: set `tokenizer.kind: word`, not `{self.tokenizer.kind}`"
            )
        several = len(self.data.text) > 1
        if self.model.segment_embeddings and not several:
            raise ValueError(
                "`model.segment_embeddings: true` tells columns apart, but `data.text` has one: name several"
            )
        if self.data.truncation == "windows" and self.data.window_overlap >= self.tokenizer.max_length:
            overlap, length = self.data.window_overlap, self.tokenizer.max_length
            raise ValueError(f"`data.window_overlap` ({overlap}) must be less than `tokenizer.max_length` ({length})")
        return self

    @property
    def task_spec(self) -> TaskSpec:
        """The facts about `task`."""
        return TASKS[self.task]

    @property
    def truncation(self) -> Truncation:
        """How rows become sequences of `tokenizer.max_length` tokens."""
        windows = self.data.truncation == "windows"
        return Truncation(
            mode=self.data.truncation,
            window_overlap=self.data.window_overlap if windows else 0,
            max_windows=self.data.max_windows if windows else 1,
        )

    @property
    def num_segments(self) -> int:
        """Columns that the model tells apart; 0 = it does not."""
        columns = len(self.data.text)
        wanted = columns > 1 if self.model.segment_embeddings is None else self.model.segment_embeddings
        return columns if wanted and not self.task_spec.is_seq2seq else 0

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
    """Read a run file (None: the defaults alone), apply `a.b=value` overrides and make its paths absolute.

    The values of overrides are YAML. Raises `ConfigError` naming every key that is wrong.
    """
    return parse(read_settings(path, overrides), "command line" if path is None else os.fspath(path))


def read_settings(path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a run file and apply overrides, without checking keys and values."""
    return override({} if path is None else _read_yaml(os.fspath(path)), overrides)


def override(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of run-file settings with `a.b=value` overrides applied, without checking keys and values."""
    result = copy.deepcopy(dict(settings))
    for word in overrides:
        _override(result, word)
    return result


def parse(settings: dict[str, Any], name: str = "run file") -> RunConfig:
    """Check settings as they stand in a run file, and make their paths absolute.

    Raises `ConfigError` naming every key that is wrong.
    """
    try:
        run = RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"`{name}` has {_counted(_problems(error, settings))}") from None
    if problems := _space_problems(run):
        raise ConfigError(f"`{name}` has {_counted(problems)}")
    return _resolve_paths(run)


def with_overrides(run: RunConfig, settings: Settings) -> RunConfig:
    """The same run with other values for dotted keys. Raises `ConfigError` naming every key that is wrong."""
    return parse(set_dotted(settings, run.model_dump()), run.name)


def _resolve_paths(run: RunConfig) -> RunConfig:
    """Return the same run with absolute paths, which mean the same in every process."""
    data = {
        split: tuple(map(storage.absolute, paths))
        for split in ("train", "valid", "test")
        if (paths := getattr(run.data, split)) is not None
    }
    file = run.tokenizer.file and storage.absolute(run.tokenizer.file)
    vectors = run.model.word_vectors and storage.absolute(run.model.word_vectors)
    return run.model_copy(
        update={
            "storage": storage.absolute(run.storage),
            "data": run.data.model_copy(update=data),
            "tokenizer": run.tokenizer.model_copy(update={"file": file}),
            "model": run.model.model_copy(update={"word_vectors": vectors}),
        }
    )


def dump(config: RunConfig) -> str:
    """The resolved run file as YAML, every key written out."""
    return written(config.model_dump(mode="json"))


def written(settings: dict[str, Any]) -> str:
    """Settings as they stand in a run file."""
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


def _space_problems(run: RunConfig) -> list[str]:
    """The values of the search space that the run file would refuse, each by itself."""
    settings = run.model_dump(exclude={"tune"})
    found = []
    for key, value in run.tune.probes():
        parts = key.split(".")
        if parts[0] not in SEARCHED or key == "train.monitor":
            found.append(f"`tune.space.{key}`: not a key to search: take one of {', '.join(SEARCHED)}, with its dots")
            continue
        try:
            RunConfig.model_validate(set_dotted({key: value}, settings))
        except ValidationError as error:
            # What lies above the key is about several keys together, and may be right with another draw.
            here = [problem for problem in error.errors() if list(map(str, problem["loc"]))[: len(parts)] == parts]
            if here:
                lines = _problems(ValidationError.from_exception_data("", here), set_dotted({key: value}, {}))  # type: ignore[arg-type]
                found += [line.replace("`", "`tune.space.", 1) for line in lines]
        except (TypeError, ValueError):  # a part before the last is a value
            found.append(f"`tune.space.{key}`: unknown key")
    return list(dict.fromkeys(found))


def _problems(error: ValidationError, settings: dict[str, Any]) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        parts = [str(part) for part in problem["loc"]]
        key = ".".join(_written(parts, settings)) or "run file"
        if problem["type"] == "extra_forbidden":
            lines.append(f"`{key}`: unknown key: {_known_keys(parts)}")
        elif problem["type"] == "value_error":
            lines.append(f"`{key}`: {problem['ctx']['error']}")
        else:
            given = "" if isinstance(problem["input"], dict) else f", not {problem['input']!r}"
            lines.append(f"`{key}`: {problem['msg'][0].lower()}{problem['msg'][1:]}{given}")
    return list(dict.fromkeys(lines))


def _counted(lines: list[str]) -> str:
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
    """Name the known key that is nearest to an unknown one, then all known keys of its section."""
    section: type[BaseModel] = RunConfig
    for part in parts[:-1]:
        if part in section.model_fields:  # else it is the key of a mapping
            annotation = section.model_fields[part].annotation
            inner: Any = get_args(annotation)[-1] if get_args(annotation) else annotation
            section = inner
    known = list(section.model_fields)
    near = difflib.get_close_matches(parts[-1], known, n=1)
    return (f"did you mean `{near[0]}`? " if near else "") + f"Known here: {', '.join(known)}"
