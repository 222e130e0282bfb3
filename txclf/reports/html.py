"""The page: one HTML file that needs nothing else, from plain values.

Text of the data is text everywhere: Jinja escapes it in the markup, JSON inside of a script tag has no `<`, and the
page's own script writes it by `textContent`. A Content-Security-Policy lets nothing run but the two scripts of the
page, named by their hashes, and nothing be fetched.

plotly.js (4.8 MB) travels packed, 2 MB a page; the browser unpacks it before the first chart.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from txclf._version import __version__
from txclf.core.errors import TxclfError

ASSETS = files("txclf") / "assets"


def render(content: Mapping[str, Any]) -> bytes:
    """The page of a run, a search or a comparison, by `kind`."""
    script = (ASSETS / "report.js").read_text()
    library, library_hash = _library()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("txclf", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "whole": whole, "share": share}
    page = environment.get_template(f"{content['kind']}.html").render(
        **content,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        txclf_version=__version__,
        style=(ASSETS / "report.css").read_text(),
        script=script,
        hashes=[_hash(script), library_hash],
        library=library,
        json=embedded(content),
    )
    return page.encode("utf-8", "replace")


def embedded(value: Any) -> str:
    """JSON that can stand in a script tag: no `<`, so that nothing in it can end the tag or begin another."""
    text = json.dumps(_finite(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


@cache
def _library() -> tuple[str, str]:
    """plotly.js, packed for a text node, and its hash."""
    found = importlib.util.find_spec("plotly")  # without importing it
    if found is None or not found.submodule_search_locations:
        raise TxclfError("reports need plotly: pip install plotly")
    code = Path(found.submodule_search_locations[0], "package_data/plotly.min.js").read_text(encoding="utf-8")
    return base64.b64encode(gzip.compress(code.encode(), 6, mtime=0)).decode(), _hash(code)


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def number(value: Any) -> str:
    """A number as a table shows it; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.3g}"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def share(value: float) -> str:
    return f"{value:.1%}"
