"""The reference pages, generated from the code.

run_file()      every key of the run file, from its pydantic models
schema()        the JSON Schema that `txclf config --schema` prints
command_line()  every command with its arguments and options, from the typer app
python()        the Python API, as directives for mkdocstrings
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import typer.core
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from txclf import api
from txclf.cli import main
from txclf.cli.commands import HELP_OPTIONS
from txclf.config import run_config
from txclf.config.search_space import Domain


def _results() -> dict[str, None]:
    """Return the paths of the classes that the public functions return, in their order."""
    tree = ast.parse(Path(api.__file__).read_text())
    modules = {
        name.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names
    }
    returned = [
        node.id
        for function in tree.body
        if isinstance(function, ast.FunctionDef) and function.returns and not function.name.startswith("_")
        for node in ast.walk(function.returns)
        if isinstance(node, ast.Name)
    ]
    found = {name: modules[name] for name in returned if str(modules.get(name)).startswith("txclf.")}
    return {f"{module}.{name}": None for name, module in found.items() if name != "RunConfig"}


PYTHON: dict[str, dict[str, list[str] | None]] = {
    "Commands as functions": {
        "txclf.load_config": None,
        "txclf.prepare": None,
        "txclf.train": None,
        "txclf.distill": None,
        "txclf.ray_result": None,
        "txclf.tune": None,
        "txclf.evaluate": None,
        "txclf.audit": None,
        "txclf.curve": None,
        "txclf.drift": None,
        "txclf.predict": None,
        "txclf.export": None,
        "txclf.serve": None,
        "txclf.serving.settings.Settings": None,
        "txclf.serving.settings.Limits": None,
    },
    "Models": {
        "txclf.Classifier": [
            "load",
            "__call__",
            "labels",
            "is_multilabel",
            "thresholds",
            "temperature",
            "probabilities",
            "logits",
            "predicted_labels",
            "prediction_sets",
            "explain",
            "embed",
            "ngram_contributions",
        ],
        "txclf.Prediction": None,
        "txclf.inference.occlusion.Explanation": ["label", "probability", "columns", "weights"],
        "txclf.Seq2Seq": ["load", "__call__", "settings"],
        "txclf.TextClassifier": ["fit", "predict", "predict_proba", "score", "save", "get_params", "set_params"],
    },
    "Results": {
        **_results(),
        "txclf.Progress": None,
        "txclf.Interrupted": None,
    },
    "Lightning": {
        "txclf.training.ShardsDataModule": ["train_dataloader", "val_dataloader", "test_dataloader", "steps_per_epoch"],
        "txclf.training.ClassifierModule": ["from_data", "training_loss"],
        "txclf.training.MultilabelModule": ["from_data"],
        "txclf.training.Seq2SeqModule": ["from_data"],
    },
    "Reports": {
        "txclf.reports.report.report": None,
        "txclf.reports.inspect.inspect": None,
    },
    "The run": {"txclf.config.run_config.RunConfig": ["run_folder"], "txclf.config.run_config.dump": None},
    "Ray": {"txclf.ray_cluster.connected": None},
    "Errors": {"txclf.core.errors": None},
}
"""Documented names by heading, with the members of a class if not all are shown."""
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def schema() -> str:
    """Return the JSON Schema of the run file."""
    return run_config.schema() + "\n"


def run_file() -> str:
    """Return the page of all run-file keys, with one heading per key for search and links."""
    lines = [
        "# Run file",
        "",
        "Every key of the run file, generated from the models that check it. See also [how to write a run",
        "file](../how-to/run-file.md) and the [JSON Schema](run-file.schema.json) for editors.",
        "",
        "```yaml",
        "name: mine",
        "data: {train: train.csv, test: test.csv}",
        "train: {epochs: 5}",
        "```",
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
    lines += ["## Search domains", "", "A key of `tune.space` has exactly one of these.", ""]
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
            yield _text(section.__doc__)
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
    """Return a value as it is written in a run file."""
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
    """Return the type of a key as text, from its JSON Schema."""
    if place.get("$ref", "").endswith("/Domain"):
        return "[domain](#search-domains)"
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
    """Return the page of all commands."""
    app = typer.main.get_command(main.app)
    lines = ["# Command line", "", _text(app.help), "", *_commands(app, ("txclf",))]
    return "\n".join(lines)


def _commands(group: Any, names: tuple[str, ...]) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from _commands(command, (*names, name))
        elif not command.hidden:
            yield from _command(command, (*names, name))


def _command(command: Any, names: tuple[str, ...]) -> Iterator[str]:
    context = typer.Context(command, info_name=" ".join(names), help_option_names=HELP_OPTIONS)
    yield from [f"## {' '.join(names)}", "", _text(command.help), ""]
    usage = [_usage(one) for one in command.params if isinstance(one, typer.core.TyperArgument)]
    yield from ["```text", " ".join([*names, "[OPTIONS]", *usage]), "```", ""]
    rows = [_row(one, record) for one in command.get_params(context) if (record := one.get_help_record(context))]
    if rows:
        yield from ["| argument or option | meaning |", "| --- | --- |", *rows, ""]


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or (parameter.name or "").upper())


def _usage(parameter: Any) -> str:
    """Return an argument as the usage shows it: `[…]` if it may be left out, `...` if it may be repeated."""
    name = _argument(parameter)
    return (name if parameter.required else f"[{name}]") + ("..." if parameter.nargs != 1 else "")


def _row(parameter: Any, record: tuple[str, str]) -> str:
    """Return the table row of an argument or option."""
    name, help_text = record
    if isinstance(parameter, typer.core.TyperArgument):
        name = _argument(parameter)
    elif parameter.multiple:
        help_text += " Repeatable."
    return f"| `{_text(name).strip()}` | {_text(help_text)} |"


def python() -> str:
    """Return the page of the Python API, which mkdocstrings fills from the docstrings."""
    lines = [
        "# Python API",
        "",
        "Generated from the docstrings. Examples: [use txclf from Python](../how-to/python.md).",
        "",
    ]
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
    """Return a docstring or help text as one paragraph."""
    return " ".join((text or "").split()).replace("|", "\\|")
