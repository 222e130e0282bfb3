"""Progress bars and tables, with and without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from txclf.cli import console


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Text of standard error, as a terminal of 100 columns."""
    shown = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=shown, force_terminal=True, width=100, highlight=False))
    return shown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.9, "9.9 s"),
        (12.4, "12 s"),
        (119, "119 s"),
        (120, "2 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "60 min 0 s"),
        (7199.4, "119 min 59 s"),
        (7199.6, "2 h 0 min"),
        (7500, "2 h 5 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_seconds_are_rounded_to_their_size(value: float, expected: str) -> None:
    assert console.seconds(value) == expected


@pytest.mark.parametrize("label", ["plain", "[bold]", "[/b]", "[link=x]", ":smile:", "日本", "a\\[b]"])
def test_table_labels_are_no_markup(capsys: pytest.CaptureFixture[str], label: str) -> None:
    console.table(f"title {label}", [f"column {label}", "rows"], [[label, "1"], ["other", "22"]])
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].strip() == f"title {label}"
    assert f" column {label} " in shown
    assert f" {label} " in shown.split("other")[0].rpartition("rows")[2]
    assert "  1 " in shown


def test_bar_without_a_terminal_prints_a_line_per_interval(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Bar("work") as bar:
        bar.update(1, 1000)
        bar.printed -= console.PLAIN_SECONDS
        bar.update(1234, 100_000, "loss 1.5", title="[b] more")
        bar.update(1235, 100_000)
        bar.printed -= console.PLAIN_SECONDS
        bar.update(2000, None)
        bar.line("a line [b]")
    captured = capsys.readouterr()
    assert captured.err == "[b] more: 1,234 of 100,000 loss 1.5\nwork: 2,000\na line [b]\n"
    assert captured.out == ""


def test_bar_on_a_terminal_shows_progress_and_note(terminal: io.StringIO) -> None:
    with console.Bar("work") as bar:
        bar.line("a line [b]")
        bar.update(3, 12, "loss [1.5]", title="[/b] more")
        assert bar.rich is not None
        bar.rich.refresh()
    shown = terminal.getvalue()
    assert all(part in shown for part in ("a line [b]", "[/b] more", "3/12", "loss [1.5]"))


def test_bar_after_an_error_is_cleared(terminal: io.StringIO) -> None:
    with pytest.raises(KeyError), console.Bar("work") as bar:
        raise KeyError
    assert bar.rich is not None
    assert bar.rich.live.is_started is False
    assert terminal.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # shows the cursor and clears the bar's line
