"""Tests of the site: the reference is complete, and its pages work in a browser without any other host."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer.core
from pydantic import BaseModel

import txclf.core.errors
from tests.helpers.browsing import chromium
from tests.helpers.docs import APP, ROOT
from txclf.config.run_config import RunConfig


@pytest.fixture(scope="module")
def reference() -> Any:
    """Import the generator of the reference."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/site/reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_run_file_reference_has_every_key(reference: Any) -> None:
    page = reference.run_file()
    for name, field in RunConfig.model_fields.items():
        kind: Any = field.annotation
        section = isinstance(kind, type) and issubclass(kind, BaseModel)
        for key in [f"{name}.{one}" for one in kind.model_fields] if section else [name]:
            assert f"# {key}\n" in page
    batch_size = page.partition("### train.batch_size\n")[2].partition("###")[0]
    assert "integer ≥ 1 and ≤ 2,147,483,647 · default `64`" in batch_size
    assert "\n#### tune.scheduler.grace_period\n" in page


def test_python_reference_has_every_public_name_and_no_other(reference: Any) -> None:
    page = reference.python()
    listed = {path: members for names in reference.PYTHON.values() for path, members in names.items()}
    errors = {name for name, kind in vars(txclf.core.errors).items() if isinstance(kind, type)}
    assert set(txclf.__all__) - errors - {"__version__"} <= {path.rpartition(".")[2] for path in listed}
    for path, members in listed.items():
        assert f"::: {path}\n" in page
        found = pkgutil.resolve_name(path)
        known = {*dir(found), *re.findall(r"self\.(\w+)", inspect.getsource(found))}
        assert set(members or ()) <= known


def test_command_line_reference_has_every_command_and_option(reference: Any) -> None:
    page = reference.command_line()

    def visit(command: Any, names: tuple[str, ...]) -> None:
        if isinstance(command, typer.core.TyperGroup):
            for name, below in command.commands.items():
                visit(below, (*names, name))
            return
        part = page.partition(f"## {' '.join(names)}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            shown = [parameter.metavar] if isinstance(parameter, typer.core.TyperArgument) else parameter.opts
            assert all(one in part for one in shown), f"{names}: {shown}"

    visit(APP, ("txclf",))
    assert "## txclf jobs stop\n" in page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make check` does."""
    pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_site_fetches_nothing_from_other_hosts(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text())
        fetched = [tag for tag in tags if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag)]
        assert not fetched, f"{page}: {fetched}"


def test_links_to_repository_files_lead_to_pages(site: Path) -> None:
    page = (site / "benchmarks/index.html").read_text()
    assert 'href="../files/jobs/seed_glove.yaml/"' in page
    assert "tokenizer" in (site / "files/jobs/seed_glove.yaml/index.html").read_text()
    home = (site / "index.html").read_text()
    assert 'href="tutorial/"' in home
    assert 'href="contributing/"' in home


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Serve the site on loopback and yield its address."""
    serve = partial(_Silent, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize("width", [1280, 390])
def test_the_site_in_a_browser(address: str, width: int) -> None:
    """Check that pages fit the window, search finds a key, colours change, and the console stays empty."""
    trouble: list[str] = []
    with chromium() as browser:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme="dark")
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("request", lambda request: trouble.append(request.url) if _elsewhere(request.url, address) else None)
        for path in ("", "tutorial/", "how-to/run-file/", "benchmarks/", "reference/cli/", "reference/python/"):
            page.goto(address + path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"/{path} is too wide"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click("form[data-md-component=palette] label:not([hidden])")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
        page.goto(address)
        page.click(".md-search__input" if width > 1000 else ".md-header label[for=__search]")
        page.keyboard.type("token_dropout")
        # Results of the word's beginning come first.
        page.wait_for_function("document.querySelector('.md-search-result__link')?.href.includes('reference/run-file')")
    assert trouble == []


def _elsewhere(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))
