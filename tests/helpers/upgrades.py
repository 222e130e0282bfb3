"""Failures that name the package whose upgrade has changed a private API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

import pytest


@contextmanager
def upgrade(package: str) -> Iterator[None]:
    """Name the package and its version in whatever fails inside."""
    try:
        yield
    except Exception as error:
        name = f"{package} {metadata.version(package)}"
        pytest.fail(f"{name} changed a private API that txclf/upstream/ uses: {type(error).__name__}: {error}")
