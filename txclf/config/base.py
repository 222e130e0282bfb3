"""Base class of the run-file sections, and the types of their keys."""

from __future__ import annotations

import os
from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from txclf.core.text import shown


class Section(BaseModel):
    """Section of the run file: frozen, without unknown keys.

    The docstring below a key is its description in the JSON Schema and in the reference.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_paths(value: object) -> object:
    """Return one or several paths as strings. Raises `ValueError` for a table in memory."""
    if hasattr(value, "__arrow_c_stream__") or hasattr(value, "columns") or hasattr(value, "column_names"):
        raise ValueError(
            f"expected paths, found a table (`{type(value).__name__}`). Pass it as an argument instead, as in "
            "`txclf.train(settings, data=table)`."
        )
    values = [value] if isinstance(value, os.PathLike) else value
    if isinstance(values, list | tuple):
        return [os.fspath(item) if isinstance(item, os.PathLike) else item for item in values]
    return _as_list(values)


def _text_keys(value: object) -> object:
    """Return a mapping with the labels that YAML reads as numbers or booleans spelled as in the data."""
    if not isinstance(value, dict):
        return value
    return {str(key).lower() if isinstance(key, bool) else str(key): weight for key, weight in value.items()}


def text_encoding(name: str) -> str:
    """Return the name of an encoding of text. Raises `ValueError` for an unknown one."""
    try:
        b"text".decode(name)
    except UnicodeDecodeError:
        pass  # a known encoding, of other bytes
    except (LookupError, ValueError):
        problem = f"unknown encoding `{shown(name)}`. Use a name of Python, such as `latin-1`, `cp1252` or `utf-16`."
        raise ValueError(problem) from None
    return name


def csv_delimiter(value: str) -> str:
    """Return the delimiter of csv columns. Raises `ValueError` if it is not one character."""
    character = {"\\t": "\t", "tab": "\t"}.get(value, value)
    if len(character) != 1 or character in '"\r\n\0':
        raise ValueError(
            f"`{shown(value)}` cannot separate columns. Use one character, such as `;` or `\\t`. In YAML a bar needs "
            'quotes: `"|"`.'
        )
    return character


def distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return values; raise `ValueError` for one that comes twice."""
    for value, count in Counter(values).items():
        if count > 1:
            raise ValueError(f"`{shown(value)}` comes twice. Name each column once.")
    return values


MAX_COUNT = 2**31 - 1
"""Largest count in a run file."""
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Size = Annotated[int, Field(ge=1, le=2**17)]
"""Width of a layer."""
# The JSON Schema, for editors, accepts a bare string too.
Strings = BeforeValidator(_as_list, json_schema_input_type=str | Annotated[tuple[str, ...], Field(min_length=1)])
FileNames = BeforeValidator(_as_paths, json_schema_input_type=str | Annotated[tuple[str, ...], Field(min_length=1)])
Paths = Annotated[tuple[str, ...], FileNames, Field(min_length=1)]
Columns = Annotated[tuple[str, ...], Strings, Field(min_length=1), AfterValidator(distinct)]
Encoding = Annotated[str, AfterValidator(text_encoding)]
Delimiter = Annotated[str, AfterValidator(csv_delimiter)]
Weights = Annotated[dict[str, Annotated[float, Field(ge=0.0, le=1e6)]], BeforeValidator(_text_keys)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
_WorkerCount = Annotated[int, Field(ge=1, le=100_000)]
Workers = Annotated[int, Field(ge=0, le=100_000)] | tuple[_WorkerCount, _WorkerCount]
Steps = Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)]
ShareOfEpoch = Annotated[float, Field(strict=True, gt=0.0, le=1.0)]
Duration = Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?[smh]$")]


def seconds_of(duration: str) -> float:
    """Return the seconds of a `Duration`."""
    return float(duration[:-1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[duration[-1]]


CheckpointEvery = Steps | ShareOfEpoch | Duration
Monitor = Literal[
    "valid_loss",
    "valid_calibrated_loss",
    "valid_accuracy",
    "valid_f1_macro",
    "valid_f1_micro",
    "valid_map",
    "valid_subset_accuracy",
    "valid_token_accuracy",
    "valid_exact_match",
]


def direction(monitor: str) -> Literal["min", "max"]:
    """Return `min` for a metric that is better if lower, as losses are, and `max` for the others."""
    return "min" if monitor.endswith("loss") else "max"
