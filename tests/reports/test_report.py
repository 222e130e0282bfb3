"""`txclf report`: the kinds of folders it accepts, and failures at the end of a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.reports import search_folder
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.reports import report


def test_report_path_that_is_no_run_is_refused(tmp_path: Path, run: RunConfig) -> None:
    prepared = storage.read_json(storage.join(run.run_folder, "summary.json"))["prepared"]
    for path, message in (
        (str(tmp_path), "neither a run nor a search"),
        (storage.join(run.run_folder, "model"), "a model bundle"),
        (prepared, "prepared data"),
        (str(tmp_path / "nothing"), "neither a run nor a search"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"`{path}`: {message}")):
            report.report([path])
    search = search_folder(tmp_path)
    with pytest.raises(ConfigError, match="a search cannot be compared"):
        report.report([run.run_folder, search.run_folder])


def test_after_broken_run_logs_a_warning(tmp_path: Path, run: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    assert report.after(run.run_folder) == storage.join(run.run_folder, "report.html")
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "run.yaml").write_text("name: [")
    (folder / "prepared.json").write_text("{}")
    assert report.after(str(folder)) is None
    assert "no report was written" in caplog.text
