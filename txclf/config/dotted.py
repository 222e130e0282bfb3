"""Settings by dotted key: `{"train.epochs": 5}` for `{"train": {"epochs": 5}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from txclf.core.text import shown

Settings = dict[str, Any]
"""Values by dotted key."""


def set_dotted(settings: Mapping[str, Any], into: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a nested mapping with the values of dotted keys replaced."""
    result = dict(into)
    for dotted, value in settings.items():
        key, _, rest = dotted.partition(".")
        result[key] = set_dotted({rest: value}, result.get(key) or {}) if rest else value
    return result


def flatten_dotted(settings: Mapping[str, Any], prefix: str = "") -> Settings:
    """Return a nested mapping as values by dotted key. An empty mapping counts as a value."""
    flat: Settings = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten_dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changed(was: Settings, now: Settings) -> dict[str, str]:
    """Return `key` (old value, now new value) for each key whose value changed, came or went, by key."""
    keys = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    return {key: f"`{key}` ({shown(was.get(key))}, now {shown(now.get(key))})" for key in keys}
