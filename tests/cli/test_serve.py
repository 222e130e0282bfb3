"""Arguments of the serve command. `tests/serving/test_serve.py` serves."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from txclf.cli import serve
from txclf.cli.main import app
from txclf.core.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "2", "--max-replicas", "1"], "--max-replicas 1: expected at least 2, as --replicas. Pass"),
        (["--max-replicas", "2"], "--max-replicas: is for replicas on Ray. Pass --replicas N too."),
        (["--replicas", "0", "--address", "auto"], "--address: is for replicas on Ray. Pass --replicas N too."),
        (["--timeout", "inf"], "--timeout inf: expected a finite number"),
        (["--cpus-per-replica", "inf"], "--cpus-per-replica inf: expected a finite number"),
        (["--token-file", "/nowhere"], "--token-file /nowhere: cannot be read: "),
    ],
)
def test_serve_contradicting_options_are_refused(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["serve", "model", *arguments])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


@pytest.mark.parametrize("content", ["", " \n", "two words", "tökén", "tab\there"])
def test_token_invalid_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(ConfigError, match="expected a token of printable ASCII characters without spaces"):
        serve._token(f"{tmp_path}/token")


def test_token_file_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("from-file\n")
    monkeypatch.delenv(serve.TOKEN, raising=False)
    assert serve._token(None) is None
    monkeypatch.setenv(serve.TOKEN, "from-environment")
    assert serve._token(None) == "from-environment"
    assert serve._token(f"{tmp_path}/token") == "from-file"


@pytest.mark.parametrize(
    ("columns", "body"),
    [
        (["text"], {"text": "some text"}),
        (["a", "it's"], {"rows": [{"a": "some text", "it's": "some text"}]}),
    ],
)
def test_curl_command_has_a_json_body(columns: list[str], body: object) -> None:
    words = shlex.split(serve._curl("http://host:1", columns, f"${serve.TOKEN}"))
    assert words[:2] == ["curl", "http://host:1/predict"]
    assert json.loads(words[words.index("-d") + 1]) == body
    assert f"Authorization: Bearer ${serve.TOKEN}" in words


@pytest.mark.parametrize(("bound", "asked"), [("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]"), ("10.0.0.1", "10.0.0.1")])
def test_curl_command_asks_this_machine(bound: str, asked: str) -> None:
    assert serve._curl(f"http://{bound}:80", ["text"], None).startswith(f"curl http://{asked}:80/predict -H 'Content")
