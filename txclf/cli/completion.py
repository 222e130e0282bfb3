"""Completion of run-file keys and their values in the shell: `train.epo` to `train.epochs=`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

BASH_WORDS = "COMP_WORDS"
"""Environment variable with the words of the command line, which the script for bash sets."""


def overrides(incomplete: str) -> list[str]:
    """Return the `key=value` overrides that begin with a word; one key that fits is completed with its values."""
    key, equals, value = incomplete.partition("=")
    # Bash takes `=` as the end of a word, so it asks for the value alone, and takes the value alone.
    separate = re.search(r"(\S+)\s=\s?(\S*)$", os.environ.get(BASH_WORDS, ""))
    if separate:
        return [found for found in _values(separate[1]) if found.startswith(separate[2])]
    if equals:
        return [f"{key}={found}" for found in _values(key) if found.startswith(value)]
    keys = [found for found in _keys() if found.startswith(incomplete)]
    if len(keys) != 1:
        return [f"{found}=" for found in keys]
    # At least two words, so that the shell completes what they have in common and adds no space.
    return [f"{keys[0]}=", *(f"{keys[0]}={found}" for found in _values(keys[0]))]


def _keys() -> list[str]:
    """Return the dotted keys of the run file."""
    return list(_fields())


def _values(key: str) -> list[str]:
    """Return the choices of a key and its default as YAML; nothing for an unknown key and for lists."""
    found = _fields().get(key)
    if found is None:
        return []
    default, choices = found
    values = [*choices, *([default] if isinstance(default, bool | int | float | str) else [])]
    if isinstance(default, bool):
        values += [not default]
    return list(dict.fromkeys(str(value).lower() if isinstance(value, bool) else str(value) for value in values))


def _fields() -> dict[str, tuple[Any, list[Any]]]:
    """Return default and choices of each key of the run file."""
    from txclf.config.run_config import RunConfig

    def visit(section: Any, prefix: str) -> Iterator[tuple[str, tuple[Any, list[Any]]]]:
        for name, field in section.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from visit(field.annotation, f"{prefix}{name}.")
            else:
                yield (
                    f"{prefix}{name}",
                    (field.get_default(call_default_factory=True), list(_choices(field.annotation))),
                )

    return dict(visit(RunConfig, ""))


def _choices(kind: Any) -> Iterator[Any]:
    """Yield the values of the literals in a type; not those in lists."""
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    elif get_origin(kind) is not tuple:
        for part in get_args(kind):
            yield from _choices(part)
