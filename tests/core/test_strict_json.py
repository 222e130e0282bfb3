"""JSON without NaN and infinity."""

from __future__ import annotations

import json
from math import inf, nan

from txclf.core import strict_json


def test_dumps_numbers_that_json_lacks_are_null_at_any_depth() -> None:
    text = strict_json.dumps({"a": [nan, {"b": (inf, 1.5)}], "é": -inf})
    assert text == '{"a": [null, {"b": [null, 1.5]}], "é": null}'


def test_dumps_converts_values_by_default() -> None:
    assert json.loads(strict_json.dumps({"a": [b"x", nan]}, default=repr)) == {"a": ["b'x'", None]}
