"""Rendering of pages: text from the data never becomes markup or code."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.reports import HOSTILE, LABELS, ReportPage, search_folder
from txclf.config.run_config import RunConfig
from txclf.reports import html, report, search_report


def test_render_text_from_the_data_stays_text(run: RunConfig) -> None:
    page = ReportPage(report.report([run.run_folder]))
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [script.get("type") for script in scripts] == ["application/json", "text/plain", None]
    assert not any(tag in ("img", "b", "iframe", "object") for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not any(attributes.get("src") for _, attributes in page.tags)
    assert all(href.startswith(("#", "data:")) for _, found in page.tags if (href := found.get("href")) is not None)
    assert "<" not in page.scripts[0]
    # The texts are on the page unchanged.
    found = [mistake["text"] for mistake in page.content["splits"][0]["mistakes"]]
    assert found
    assert any(HOSTILE[0] in text for text in found)
    assert any(HOSTILE[1] in text for text in found)
    assert all(text in page.text for text in found)
    assert page.content["splits"][0]["labels"] == sorted(LABELS)
    assert all(label in page.text for label in LABELS)


def test_render_policy_allows_only_the_two_scripts_of_the_page(run: RunConfig) -> None:
    page = ReportPage(report.report([run.run_folder]))
    policy = next(found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    script = policy.split("script-src")[1].split(";")[0].split()
    assert len(script) == 2
    assert all(source.startswith("'sha256-") for source in script)
    assert script[0] == f"'{html._hash(page.scripts[2])}'"


@pytest.mark.parametrize("value", [*HOSTILE, *LABELS, {"<": [">", "&"]}, float("nan"), [1.5, None, True]])
def test_embedded_any_value_is_safe_in_a_script_tag(value: Any) -> None:
    text = html.embedded({"value": value})
    assert not set("<>&") & set(text)
    found = json.loads(text)["value"]
    assert found == value or (isinstance(value, float) and found is None)


def test_render_script_is_joined_from_all_parts(run: RunConfig) -> None:
    script = ReportPage(report.report([run.run_folder])).scripts[2]
    assert script == "".join((html.ASSETS / name).read_text() for name in html.SCRIPTS)
    assert script.startswith('"use strict";')
    assert set(html.SCRIPTS) == {
        path.name for path in html.ASSETS.iterdir() if path.name.startswith("report") and path.name.endswith(".js")
    }


def test_render_embedded_content_equals_the_page(tmp_path: Path) -> None:
    page = search_report.gather(search_folder(tmp_path).run_folder)
    (tmp_path / "page.html").write_bytes(html.render(page))
    assert ReportPage(str(tmp_path / "page.html")).content == json.loads(html.embedded(asdict(page)))


def test_render_bidirectional_and_control_characters_are_escaped(tmp_path: Path) -> None:
    page = search_report.gather(search_folder(tmp_path).run_folder)
    content = html.render(replace(page, name="a\u202eb\x1b", notes=["one\ntwo \u200d"]))
    assert not set(content.decode()) & set("\u202e\x1b")
    (tmp_path / "page.html").write_bytes(content)
    shown = ReportPage(str(tmp_path / "page.html"))
    assert r"a\u202eb\x1b" in shown.text
    assert shown.content["notes"] == ["one\ntwo \u200d"]


def test_render_not_finished_is_in_the_heading(tmp_path: Path) -> None:
    page = search_report.gather(search_folder(tmp_path).run_folder)
    for finished in (True, False):
        (tmp_path / "page.html").write_bytes(html.render(replace(page, finished=finished, notes=[])))
        assert ("not finished" in ReportPage(str(tmp_path / "page.html")).text) is not finished


def test_assets_no_template_or_script_compares_tasks() -> None:
    for path in html.ASSETS.iterdir():
        assert not re.search(r"\btask\b\s*[!=]=", path.read_text()), path.name


def test_assets_numbers_on_the_confusion_matrix_have_enough_contrast() -> None:
    """The text of the page is readable on each color of the matrix: WCAG 2.2 asks for a contrast of 4.5."""
    style = (html.ASSETS / "report.css").read_text()
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for scheme in (light, dark):
        colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme.split("body {")[0]))
        for back in ("back", "panel", "warm", "heat"):
            assert contrast(colors["text"], colors[back]) >= 4.5, back
        for name in ("soft", "accent", "good", "bad"):
            assert contrast(colors[name], colors["back"]) >= 4.5, name


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colors as WCAG 2.2 defines it."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    """Return the relative luminance of a color."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
