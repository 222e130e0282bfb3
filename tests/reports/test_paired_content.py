"""Content of a comparison: any of it can be embedded in a page."""

from __future__ import annotations

import json
from dataclasses import asdict

from txclf.artifacts import run_folder
from txclf.config.run_config import RunConfig
from txclf.reports import html, paired
from txclf.reports.error_analysis import QUICK


def test_paired_runs_embedded_content_has_every_field(run: RunConfig) -> None:
    state = run_folder.read_run(run.run_folder)
    page = paired.paired([state, state], ["one", "two"], QUICK, [])
    assert page
    content = json.loads(html.embedded(asdict(page)))
    assert content.keys() == asdict(page).keys()
    assert [one["name"] for one in content["runs"]] == ["one", "two"]
    assert len(content["classes"]) == len(page.classes)
