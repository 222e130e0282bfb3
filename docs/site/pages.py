"""A mkdocs hook that generates the pages of the site that are not in docs/.

index, changelog, contributing   README.md, CHANGELOG.md and CONTRIBUTING.md, which GitHub shows at the root
reference/                       from the code: the run file's models, the typer app, the docstrings
files/                           each file and folder of the repository that a page links to, so that links work on
                                 GitHub and on the site

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
ROOT_PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages of the site by their file at the root of the repository."""
GENERATED: dict[str, Callable[[], str]] = {
    "reference/run-file.md": reference.run_file,
    "reference/run-file.schema.json": reference.schema,
    "reference/cli.md": reference.command_line,
    "reference/python.md": reference.python,
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "sh", "": "text"}


def on_config(config: MkDocsConfig) -> None:
    """Add the decisions to the navigation, in order."""
    decisions = _section(config.nav or [], "Decisions")
    decisions += [f"decisions/{path.name}" for path in sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File, InclusionLevel

    for name, uri in ROOT_PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
    for uri, generate in GENERATED.items():
        files.append(File.generated(config, uri, content=generate()))
    linked = {target for file in files.documentation_pages() for target in _outside(file.src_uri, file.content_string)}
    for target in sorted(linked):
        page = File.generated(
            config, f"files/{target}.md", content=_file_page(target), inclusion=InclusionLevel.NOT_IN_NAV
        )
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to files of the repository into links to their pages on the site."""
    here = page.file.src_uri
    if page.parent is None:  # its section has no other page
        page.meta["hide"] = ["navigation"]

    def rewrite(match: re.Match[str]) -> str:
        path = _path(here, match[1])
        uri = ROOT_PAGES.get(path) or (path[5:] if path.startswith("docs/") else f"files/{path}.md")
        if files.get_file_from_path(uri) is None:
            return match[1]  # mkdocs warns about it
        return posixpath.relpath(uri, posixpath.dirname(here) or ".")

    parts = FENCE.split(markdown)
    return "".join(part if number % 2 else LINK.sub(rewrite, part) for number, part in enumerate(parts))


def _path(page: str, target: str) -> str:
    """Return the target of a page's link, relative to the root of the repository."""
    origin = next((name for name, uri in ROOT_PAGES.items() if uri == page), f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _outside(page: str, markdown: str) -> Iterator[str]:
    """Yield the files and folders outside docs/ that a page links to and that have no page yet."""
    for part in FENCE.split(markdown)[::2]:
        for target in LINK.findall(part):
            path = _path(page, target)
            if not path.startswith("docs/") and path not in ROOT_PAGES and (ROOT / path).exists():
                yield path


def _file_page(path: str) -> str:
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n"
    if (ROOT / path).is_dir():
        names = sorted(one.name for one in (ROOT / path).iterdir() if not one.name.startswith((".", "_")))
        return head + "\n".join(f"- `{name}`" for name in names) + "\n"
    language = LANGUAGES.get(Path(path).suffix, "text")
    content = (ROOT / path).read_text().rstrip()
    return f"{head}````{language}\n{content}\n````\n"


def _section(nav: list[Any], title: str) -> list[Any]:
    """Return the list of a section of the navigation, at any depth."""
    for item in nav:
        for name, below in item.items() if isinstance(item, dict) else ():
            if name == title:
                assert isinstance(below, list)
                return below
            if isinstance(below, list) and (found := _section(below, title)):
                return found
    return []
