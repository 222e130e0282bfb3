"""One trained run for all tests of reports; tests that change it use a copy."""

from __future__ import annotations

import pytest

from tests.helpers.reports import hostile_run
from txclf.config.run_config import RunConfig


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return hostile_run(tmp_path_factory.mktemp("report"))
