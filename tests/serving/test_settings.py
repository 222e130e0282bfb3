"""Settings of the service are checked when they are made, also by a Python program."""

from __future__ import annotations

import math
from typing import Any

import pytest

from txclf.core.errors import ConfigError
from txclf.serving.settings import Limits, Settings, require_token


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"limits": Limits(seconds=math.inf)}, "--timeout inf: expected a finite number"),
        ({"cpus_per_replica": math.nan}, "--cpus-per-replica nan: expected a finite number"),
        ({"address": "auto"}, "--address: is for replicas on Ray"),
        ({"max_replicas": 3}, "--max-replicas: is for replicas on Ray"),
        ({"replicas": 3, "max_replicas": 2}, "--max-replicas 2: expected at least 3"),
        ({"token": ""}, "`token`: expected a token of printable ASCII"),  # every request would have it
        ({"token": "schlüssel"}, "`token`: expected a token of printable ASCII"),
    ],
)
def test_settings_that_make_no_sense_raise(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Settings(**settings)


def test_settings_of_replicas_are_kept() -> None:
    made = Settings(replicas=2, max_replicas=4, cpus_per_replica=1.5, gpus_per_replica=0.5, max_batch_size=8)
    assert (made.threads, made.use_gpu, made.max_ongoing_requests) == (2, True, 16)


def test_require_token_returns_a_token_that_a_header_can_carry() -> None:
    assert require_token("abc-123", "here") == "abc-123"
    with pytest.raises(ConfigError, match="here: expected"):
        require_token("two words", "here")
