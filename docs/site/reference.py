"""The pages of the reference, from the code itself: nothing of them is written by hand.

run_file()      every key of the run file, from the models that check it
schema()        the JSON Schema that `txclf config --schema` prints
command_line()  every command with its arguments and options, from the typer app
python()        what mkdocstrings is to show
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import typer
import typer.core
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from txclf.cli import main
from txclf.config import run_config
from txclf.config.search_space import Domain

PYTHON: dict[str, dict[str, list[str] | None]] = {
    "Models": {
        "txclf.Classifier": [
            "load",
            "__call__",
            "labels",
            "several",
            "thresholds",
            "temperature",
            "probabilities",
            "given",
        ],
        "txclf.Prediction": None,
        "txclf.Seq2Seq": ["load", "__call__", "settings"],
    },
    "The run file": {
        "txclf.config.run_config.load": None,
        "txclf.config.run_config.parse": None,
        "txclf.config.run_config.replaced": None,
        "txclf.config.run_config.dump": None,
        "txclf.config.run_config.RunConfig": ["run_folder"],
    },
    "Preparing and training": {
        "txclf.data.prepare.prepare": None,
        "txclf.training.train.train": None,
        "txclf.training.train.Summary": None,
    },
    "Searching": {
        "txclf.tuning.tune.open_folder": None,
        "txclf.tuning.tune.plan": None,
        "txclf.tuning.tune.tune": None,
        "txclf.tuning.tune.Search": None,
    },
    "Using": {
        "txclf.evaluation.evaluate.evaluate": None,
        "txclf.prediction.predict.predict": None,
        "txclf.inference.export.export": None,
        "txclf.reports.report.report": None,
        "txclf.reports.inspect.inspect": None,
    },
    "Ray": {"txclf.ray_cluster.connected": None},
    "Errors": {"txclf.core.errors": None},
}
"""What is shown by its heading; the members of a class, where not all."""
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def schema() -> str:
    return run_config.schema() + "\n"


def run_file() -> str:
    """A heading for each key, so that search finds it and a link leads to it."""
    lines = [
        "# The run file",
        "",
        "Every key, from the models that check a run file. [The guide](../guide/run-file.md) tells what belongs",
        "together; for editors there is a [JSON Schema](run-file.schema.json), as `txclf config --schema` prints it.",
        "",
    ]
    described = run_config.RunConfig.model_json_schema(by_alias=False)
    top = {name: field for name, field in run_config.RunConfig.model_fields.items() if not _section(field)}
    lines += ["## Top level", "", *_keys(top, described, described, "")]
    for name, field in run_config.RunConfig.model_fields.items():
        if section := _section(field):
            lines += [f"## {name}", "", _text(section.__doc__), ""]
            lines += _keys(
                section.model_fields, _resolved(described["properties"][name], described), described, f"{name}."
            )
    lines += ["## Domains of a search", "", "What a key of `tune.space` may be: exactly one of these.", ""]
    lines += _keys(Domain.model_fields, described["$defs"]["Domain"], described, "", level=3)
    return "\n".join(lines)


def _keys(
    fields: dict[str, FieldInfo], described: dict[str, Any], whole: dict[str, Any], prefix: str, level: int = 3
) -> Iterator[str]:
    for name, field in fields.items():
        place = described["properties"][name]
        yield f"{'#' * level} {prefix}{name}"
        yield ""
        if section := _section(field):
            yield f"{_text(section.__doc__)} A section of its own."
            yield ""
            yield from _keys(section.model_fields, _resolved(place, whole), whole, f"{prefix}{name}.", level + 1)
            continue
        default = field.get_default(call_default_factory=True)
        yield f"{_kind(place, whole)} · default `{_value(default)}`"
        yield "{ .key }"
        yield ""
        yield _text(field.description)
        yield ""


def _value(value: Any) -> str:
    """As one would write it in a run file."""
    plain = isinstance(value, str) and re.fullmatch(r"\w+", value)
    return value if plain else json.dumps(to_jsonable_python(value))


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind: Any = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _resolved(place: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in place:
        place = whole["$defs"][place["$ref"].rsplit("/", 1)[1]]
    return place


def _kind(place: dict[str, Any], whole: dict[str, Any]) -> str:
    """The type of a key in words, from its JSON Schema."""
    if place.get("$ref", "").endswith("/Domain"):
        return "[domain](#domains-of-a-search)"
    place = _resolved(place, whole)
    if "anyOf" in place:
        return " or ".join(dict.fromkeys(_kind(one, whole) for one in place["anyOf"]))
    if "enum" in place:
        return "one of " + ", ".join(f"`{value}`" for value in place["enum"])
    if "const" in place:
        return f"`{place['const']}`"
    limits = [
        f"{sign} {_number(place[name])}" for name, sign in LIMITS.items() if name in place and abs(place[name]) < 2**62
    ]
    words: str = place.get("type", "any value")
    if words == "array":
        if "prefixItems" in place:
            return "list of " + ", ".join(_kind(one, whole) for one in place["prefixItems"])
        return f"list of {_kind(place['items'], whole)}" if place.get("items") else "list"
    if words == "object":
        values = place.get("additionalProperties")
        return f"mapping to {_kind(values, whole)}" if isinstance(values, dict) else "mapping"
    if pattern := place.get("pattern"):
        limits.append(f"matching `{pattern}`")
    return " ".join([words, " and ".join(limits)]).rstrip()


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(value)


def command_line() -> str:
    app = typer.main.get_command(main.app)
    lines = ["# The command line", "", _text(app.help), "", *_commands(app, ("txclf",))]
    return "\n".join(lines)


def _commands(group: Any, names: tuple[str, ...]) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from _commands(command, (*names, name))
        elif not command.hidden:
            yield from _command(command, (*names, name))


def _command(command: Any, names: tuple[str, ...]) -> Iterator[str]:
    context = typer.Context(command, info_name=" ".join(names))
    yield from [f"## {' '.join(names)}", "", _text(command.help), ""]
    usage = [_argument(one) for one in command.params if isinstance(one, typer.core.TyperArgument)]
    yield from ["```text", " ".join([*names, "[OPTIONS]", *usage]), "```", ""]
    rows = [_row(one, record) for one in command.params if (record := one.get_help_record(context))]
    if rows:
        yield from ["| | |", "| --- | --- |", *rows, ""]


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or (parameter.name or "").upper())


def _row(parameter: Any, record: tuple[str, str]) -> str:
    """An argument or option with what its help says."""
    name, told = record
    if isinstance(parameter, typer.core.TyperArgument):
        name = _argument(parameter)
    kind = re.search(r" <(list\[)?(\w+).*>$", name)
    if kind:
        name = name[: kind.start()] + (" TEXT" if kind[2] == "str" else " NUMBER")
        told += " Repeatable." if kind[1] else ""
    return f"| `{_text(name)}` | {_text(told)} |"


def python() -> str:
    lines = ["# Python", "", "From the docstrings. [The guide](../guide/python.md) shows how they go together.", ""]
    for title, names in PYTHON.items():
        lines += [f"## {title}", ""]
        for name, members in names.items():
            lines += [
                f"::: {name}",
                *(["    options:", f"      members: {json.dumps(members)}"] if members else []),
                "",
            ]
    return "\n".join(lines)


def _text(text: str | None) -> str:
    """A docstring or a help text as one paragraph."""
    return " ".join((text or "").split()).replace("|", "\\|")
