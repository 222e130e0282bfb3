"""A browser for the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.browsing import Open, chromium, scrolled, visits


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium, or skip the tests."""
    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Open the page of a file and scroll through it. The test fails if it logs to the console or requests anything."""
    with visits(browser, lambda url, _: url.startswith(("file:", "data:", "blob:"))) as visit:
        yield lambda path, *options: scrolled(visit(Path(path).as_uri(), *options))


@pytest.fixture
def tried(browser: Any) -> Iterator[Open]:
    """Open a served page. The test fails if it logs to the console or requests another host."""
    with visits(browser, lambda url, address: url.startswith((address, "data:"))) as visit:
        yield visit
