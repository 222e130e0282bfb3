"""JSON that every reader accepts: NaN and infinity, which JSON lacks, become null."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any


def dumps(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Return JSON text on one line. `default` converts values of types that JSON lacks."""
    try:
        return _encode(value, default)
    except ValueError:  # NaN or infinity
        return _encode(finite(value), default)


def _encode(value: Any, default: Callable[[Any], Any] | None) -> str:
    return json.dumps(value, ensure_ascii=False, default=default, allow_nan=False)


def finite(value: Any) -> Any:
    """Replace NaN and infinity by None in a plain value of any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
