"""Completion of run-file keys and values in the shell."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from txclf.cli import completion
from txclf.cli.main import app


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.epo", ["train.epochs=", "train.epochs=3"]),
        ("train.weight", ["train.weight_decay=", "train.weight_decay=0.01"]),
        ("train.w", ["train.weight_decay=", "train.warmup_fraction="]),
        ("train.schedule=co", ["train.schedule=cosine", "train.schedule=constant"]),
        ("train.compile=", ["train.compile=false", "train.compile=true"]),
        ("model.ngrams=", ["model.ngrams=auto"]),
        ("tune.scheduler.kind=a", ["tune.scheduler.kind=asha"]),
        ("data.text=", []),
        ("nothing", []),
        ("nothing=", []),
    ],
)
def test_overrides_complete_keys_and_values(word: str, expected: list[str]) -> None:
    assert completion.overrides(word) == expected


@pytest.mark.parametrize(
    ("words", "word", "expected"),
    [
        ("txclf\ntrain\nrun.yaml\ntrain.schedule\n=\nco", "co", ["cosine", "constant"]),
        ("txclf\ntrain\nrun.yaml\ntrain.schedule\n=", "=", ["one_cycle", "cosine", "linear", "constant"]),
    ],
)
def test_overrides_in_bash_complete_the_value_alone(
    monkeypatch: pytest.MonkeyPatch, words: str, word: str, expected: list[str]
) -> None:
    monkeypatch.setenv(completion.BASH_WORDS, words)
    assert completion.overrides(word) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "run.yaml", "model.poo"], "model.pooling=mean_max"),
        (["tu"], "tune"),
        (["export", "model", "--format", "on"], "onnx"),
        (["submit", "dist"], "distill"),
        (["train", "run.yaml", "--res"], "--resume"),
    ],
)
def test_bash_asks_the_command_for_completions(words: list[str], expected: str) -> None:
    line = {
        "_TXCLF_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(["txclf", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = CliRunner().invoke(app, [], env=line, prog_name="txclf")
    assert expected in done.stdout.split()
