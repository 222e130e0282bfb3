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


class Terminal(io.StringIO):
    """Output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_on_a_terminal_wrap_sentences_but_not_what_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/folder/with-a-name/that/is-longer-than/the-terminal"
    lines.out(
        f"advice: Few rows of a class. Add some, or set `train.class_weights`.\n\ncurl  {path}\n  curl  {path} --fail"
    )
    lines.next_steps(f"txclf train {path} name=a data.corrections={path}.csv")
    assert shown.getvalue().splitlines() == [
        "advice: Few rows of a class. Add some,",
        "or set `train.class_weights`.",
        "",
        "curl",
        path,
        f"  curl  {path} --fail",
        f"next: txclf train {path} name=a data.corrections={path}.csv",
    ]


def test_lines_of_a_file_stay_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines.out("word " * 20)
    assert capsys.readouterr().out == "word " * 20 + "\n"
