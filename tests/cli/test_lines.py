"""Plain lines in any encoding."""

from __future__ import annotations

import io
import sys

import pytest

from txclf.cli import lines


def test_accept_every_character_escapes_what_the_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    lines.accept_every_character()
    lines.out("météo")
    assert content.getvalue() == rb"m\xe9t\xe9o" + b"\n"


def test_lines_escape_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    lines.out("one \x1b[31mred\ntwo")
    lines.err("\u202ethree")
    assert capsys.readouterr() == ("one \\x1b[31mred\ntwo\n", "\\u202ethree\n")
