"""The pages of the documentation, and the code blocks and prose in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main
from pydantic import BaseModel

from txclf.cli import main
from txclf.config.run_config import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

APP: Any = typer.main.get_command(main.app)
_BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of some languages."""
    return [text for _, language, text in _BLOCK.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return _BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and the site give to a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def calls(script: str) -> Iterator[list[str]]:
    """Yield the arguments of each `txclf` command of a shell script."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        try:
            words = list(lexer)
        except ValueError:  # a line of a multi-line string
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if word and not set(word) - set("|&;()<>"):
                for number, part in enumerate(command):
                    if part.rsplit("/", 1)[-1] == "txclf" and all("=" in before for before in command[:number]):
                        yield command[number + 1 :]
                        break
                command = []
            else:
                command.append(word)


def find_command(arguments: list[str]) -> tuple[Any, list[str], str]:
    """Return the command that arguments call, the arguments left, and its name."""
    command, names = APP, list[str]()
    while isinstance(command, typer.core.TyperGroup) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        assert name in command.commands, f"no command `{' '.join([*names, name])}`"
        command = command.commands[name]
        names.append(name)
    return command, arguments, " ".join(names)


def require_key(dotted: str, page: Path) -> None:
    """Fail if a dotted key is not one of the run file."""
    kind: Any = RunConfig
    for part in dotted.split("."):
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return  # below a mapping, such as tune.space
        assert part in kind.model_fields, f"{page.name}: no key `{dotted}` in the run file"
        kind = kind.model_fields[part].annotation
