"""Rendering of report pages: one HTML file without external resources.

Text from the data stays text: Jinja escapes it in the markup, the JSON in the script tag contains no `<`, and the
scripts of the page write it through `textContent`. A Content-Security-Policy allows only the two scripts of the page,
named by their hashes, and no requests. No button sends data away: the script lists plotly's buttons, and no window
opens.

plotly.js (4.8 MB) is embedded compressed, 2 MB a page. The browser decompresses it before the first chart.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from txclf._version import __version__
from txclf.core import strict_json
from txclf.core.errors import TxclfError
from txclf.core.text import escaped, number
from txclf.reports import formatting
from txclf.reports.content import Page

ASSETS = files("txclf") / "assets"
SCRIPTS = ("report_charts.js", "report_run.js", "report_search.js", "report_results.js", "report.js")
"""Parts of the page's script, in the order in which they are joined."""


KEPT = "\n\r\t\u200c\u200d\u2028\u2029"
"""Characters without a shape that texts need: white space, and the joiners of scripts and emojis."""


def render(page: Page) -> bytes:
    """Render a page with the template of its kind and return the HTML as UTF-8."""
    content = _visible(asdict(page))
    script = "".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    library, library_hash = _library()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("txclf", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = (number, formatting.signed, formatting.whole, formatting.share)
    for format_value in (*numbers, formatting.titled, formatting.metric_title, formatting.with_intervals):
        environment.filters[format_value.__name__] = format_value
    text = environment.get_template(f"{page.kind}.html").render(
        **content,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        txclf_version=__version__,
        style=(ASSETS / "report.css").read_text(encoding="utf-8"),
        script=script,
        hashes=[_hash(script), library_hash],
        library=library,
        json=embedded(content),
    )
    return text.encode("utf-8", "replace")


def embedded(value: Any) -> str:
    """Return JSON that is safe in a script tag: without `<`, so that no text in it can end the tag or start another."""
    text = json.dumps(strict_json.finite(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _visible(value: Any) -> Any:
    """Escape characters without a shape in all texts of a plain value, because some of them reorder what is shown."""
    if isinstance(value, str):
        return escaped(value, KEPT)
    if isinstance(value, Mapping):
        return {_visible(key): _visible(inner) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_visible, value))
    return list(map(_visible, value)) if isinstance(value, list | tuple) else value


@cache
def _library() -> tuple[str, str]:
    """Return plotly.js, compressed and base64-encoded, and the hash of its code."""
    spec = importlib.util.find_spec("plotly")  # does not import the package
    if spec is None or not spec.submodule_search_locations:
        raise TxclfError("`plotly`: not installed. Run `pip install plotly` to make reports.")
    code = Path(spec.submodule_search_locations[0], "package_data/plotly.min.js").read_text(encoding="utf-8")
    return base64.b64encode(gzip.compress(code.encode(), 6, mtime=0)).decode(), _hash(code)


def _hash(script: str) -> str:
    """Return the source expression of a script for the Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
