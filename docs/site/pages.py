"""What the site has beside the pages of docs/, made while it is built.

index, changelog, contributing   README.md, CHANGELOG.md and CONTRIBUTING.md, which GitHub shows at the root
reference/                       from the code: the run file's models, the typer app, the docstrings
files/                           every file of the repository that a page links to, as a page: those links hold on
                                 GitHub and here

    hooks: [docs/site/pages.py]          # in mkdocs.yml
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
import reference

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
TOP = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages of the site by their file at the repository's root."""
MADE: dict[str, Callable[[], str]] = {
    "reference/run-file.md": reference.run_file,
    "reference/run-file.schema.json": reference.schema,
    "reference/cli.md": reference.command_line,
    "reference/python.md": reference.python,
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "sh", "": "text"}


def on_config(config: MkDocsConfig) -> None:
    """Puts the decisions into the navigation, in their order."""
    decisions = _section(config.nav or [], "Decisions")
    decisions += [f"decisions/{path.name}" for path in sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    from mkdocs.structure.files import File, InclusionLevel

    for name, place in TOP.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text()))
    for place, make in MADE.items():
        files.append(File.generated(config, place, content=make()))
    linked = {target for file in files.documentation_pages() for target in _outside(file.src_uri, file.content_string)}
    for target in sorted(linked):
        page = File.generated(config, f"files/{target}.md", content=_shown(target), inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to where the repository's files are on the site."""
    here = page.file.src_uri
    if page.parent is None:  # beside it there is nothing to go to
        page.meta["hide"] = ["navigation"]

    def led(match: re.Match[str]) -> str:
        path = _path(here, match[1])
        place = TOP.get(path) or (path[5:] if path.startswith("docs/") else f"files/{path}.md")
        if files.get_file_from_path(place) is None:
            return match[1]  # mkdocs names it
        return posixpath.relpath(place, posixpath.dirname(here) or ".")

    parts = FENCE.split(markdown)
    return "".join(part if number % 2 else LINK.sub(led, part) for number, part in enumerate(parts))


def _path(page: str, target: str) -> str:
    """Where a link of a page leads, from the repository's root."""
    origin = next((name for name, place in TOP.items() if place == page), f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _outside(page: str, markdown: str) -> Iterator[str]:
    """The files outside docs/ that a page links to and that have no page yet."""
    for part in FENCE.split(markdown)[::2]:
        for target in LINK.findall(part):
            path = _path(page, target)
            if not path.startswith("docs/") and path not in TOP and (ROOT / path).is_file():
                yield path


def _shown(path: str) -> str:
    language = LANGUAGES.get(Path(path).suffix, "text")
    content = (ROOT / path).read_text().rstrip()
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n````{language}\n{content}\n````\n"


def _section(nav: list[Any], title: str) -> list[Any]:
    """The list of a section of the navigation, at any depth."""
    for item in nav:
        for name, below in item.items() if isinstance(item, dict) else ():
            if name == title:
                assert isinstance(below, list)
                return below
            if isinstance(below, list) and (found := _section(below, title)):
                return found
    return []
