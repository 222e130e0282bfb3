"""Tests that hold the pages against the code: commands, keys, run files, links, messages and the code tour."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from tests.helpers.docs import ROOT, anchors, blocks, calls, each_page, find_command, prose, require_key
from txclf.config import recipes, run_config, yaml_text
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError

TAKES_OVERRIDES = {"config", "prepare", "train", "tune", "check"}
"""Commands that take `key=value` overrides of the run file."""
FILE_ENDINGS = {"csv", "jsonl", "parquet", "json", "yaml", "safetensors", "onnx", "pt2", "int8", "py", "tsv"}


def test_calls_of_a_script_with_comments_finds_each_txclf_command() -> None:
    script = "A=1 .venv/bin/txclf train a.yaml \\\n  x=1  # said\ncd b && txclf jobs list | grep txclf\necho txclf\n"
    assert list(calls(script)) == [["train", "a.yaml", "x=1"], ["jobs", "list"]]


@each_page
def test_commands_in_code_blocks_parse(page: Path) -> None:
    for words in (words for script in blocks(page, "sh", "console", "bash") for words in calls(script)):
        command, rest, name = find_command(words)
        if rest in (["--help"], ["--version"], ["--install-completion"]):
            continue
        if name == "submit":
            rest = [word for word in rest if word not in ("--resume", "--no-wait")]
            _, inner, verb = find_command(rest)
            _check_overrides(verb, inner, page)
            continue
        # A placeholder for a number, as in `--workers N`, becomes one.
        rest = ["1" if re.fullmatch("[A-Z]", word) else word for word in rest]
        address = ["--address", "http://head:8265"] if name.startswith("jobs") and "--address" not in rest else []
        command.make_context(name, [*rest, *address])  # raises for an unknown option and for a missing argument
        _check_overrides(name, rest, page)


def _check_overrides(name: str, words: list[str], page: Path) -> None:
    """Fail if an override of a command names an unknown key."""
    for word in words if name in TAKES_OVERRIDES else []:
        if "=" in word and not word.startswith("-"):
            require_key(word.partition("=")[0], page)


@each_page
def test_commands_in_prose_exist(page: Path) -> None:
    for span in re.findall(r"`(txclf [^`]*)`", prose(page)):
        words = [word for word in span.split()[1:] if word not in ("VERB", "COMMAND", "…")]
        command, rest, name = find_command(words)
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
        for word in rest:
            if word.startswith("--") and name != "submit":
                assert word.partition("=")[0] in known, f"{page.name}: `{span}`: no option {word}"


@each_page
def test_run_files_in_code_blocks_are_valid(page: Path) -> None:
    for text in blocks(page, "yaml"):
        settings = yaml_text.parse(text)
        if isinstance(settings, dict) and set(settings) & set(RunConfig.model_fields):
            run_config.parse(settings, f"{page.name}: {text}")


def test_an_invalid_run_file_and_key_are_found() -> None:
    with pytest.raises(ConfigError, match="epoch"):
        run_config.parse({"train": {"epoch": 3}})
    with pytest.raises(AssertionError, match="no key"):
        require_key("train.epoch", ROOT / "README.md")


@each_page
def test_keys_in_prose_exist(page: Path) -> None:
    sections = "data|tokenizer|model|train|generate|compute|tune"
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        match = re.match(rf"(({sections})\.(\w+)[\w.]*)(?=$|[:=\s])", span)
        if match and match[3] not in FILE_ENDINGS:
            require_key(match[1], page)


@each_page
def test_links_lead_to_files_and_anchors(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)]*))?\)", prose(page)):
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page.name} links to {target}#{anchor}"


def test_messages_in_troubleshooting_are_in_the_code() -> None:
    texts = [text for path in (ROOT / "txclf").rglob("*.py") for text in _literals(path)]
    table = (ROOT / "docs/troubleshooting.md").read_text().partition("## Common errors")[2]
    messages = re.findall(r"^\| `+ ?(.+?) ?`+ \|", table, re.MULTILINE)
    assert len(messages) > 20
    unknown = [message for message in messages if not any(message.lower() in text.lower() for text in texts)]
    assert unknown == []


def _literals(path: Path) -> list[str]:
    """Return the strings of a module, with `{}` for what an f-string fills in."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            texts.append("".join(map(str, parts)))
    return texts


def test_the_code_tour_has_every_module() -> None:
    tour = (ROOT / "docs/development/code-tour.md").read_text()
    named = re.findall(r"^\| `([\w/]+\.py)` \|", tour, re.MULTILINE)
    modules = (ROOT / "txclf").rglob("*.py")
    expected = sorted(str(path.relative_to(ROOT / "txclf")) for path in modules if path.name != "__init__.py")
    assert sorted(named) == expected


def test_fault_tests_named_in_the_docs_exist() -> None:
    names = re.findall(r"`(test_\w+)…?`", (ROOT / "docs/ray/faults.md").read_text())
    tests = (ROOT / "tests/end_to_end/test_faults.py").read_text()
    assert len(names) > 8
    assert [name for name in names if f"def {name}" not in tests] == []


def test_the_table_of_the_recipe_is_that_of_the_code() -> None:
    table = (
        (ROOT / "docs/how-to/pretrained.md").read_text().partition("## What the recipe sets")[2].partition("\n- ")[0]
    )
    rows = {
        key: cells.split(" | ") for key, cells in re.findall(r"^\| `train\.(\w+)` \| (.+) \|$", table, re.MULTILINE)
    }
    many, few = (recipes.pretrained(recipes.SMALL_ROWS - less)["train"] for less in (0, 1))
    assert rows.keys() == many.keys() | few.keys()
    for key, (scratch, pretrained, small) in rows.items():
        default = getattr(RunConfig().train, key)
        expected = [default, many.get(key, default), few.get(key, default)]
        shown = [
            None if cell == "as `learning_rate`" else yaml.safe_load(cell.strip("`"))
            for cell in (scratch, pretrained, small)
        ]
        assert shown == expected, key
    page = (ROOT / "docs/how-to/pretrained.md").read_text()
    assert f"below {recipes.SMALL_ROWS:,} training rows" in table
    assert f"for {recipes.SMALL_STEPS} steps in all and up to {recipes.pretrained(1)['train']['epochs']} epochs" in page
    assert [recipes.pretrained(rows)["train"]["epochs"] for rows in (160, 159)] == [20, 21]


def test_the_table_of_what_the_rows_decide_is_that_of_the_code() -> None:
    table = (ROOT / "docs/how-to/train.md").read_text().partition("## What the rows decide")[2].partition("\n\nThey")[0]
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| (.+) \| (.+) \|$", table, re.MULTILINE)
    recipe = recipes.scratch(100_000, 2)
    assert [(section, key) for section, key, _, _ in rows] == [(one, key) for one in recipe for key in recipe[one]]
    for section, key, by_rows, fixed in rows:
        default = getattr(getattr(RunConfig(), section), key)
        assert yaml.safe_load(fixed) == (list(default) if isinstance(default, tuple) else default)
        value = recipe[section][key]
        if key not in ("epochs", "batch_size"):
            assert yaml.safe_load(by_rows) == (list(value) if isinstance(value, tuple) else value)
    assert (recipes.STEPS, recipes.STEPS / recipes.LABELS) == (1000, 40)
    limits = f"{recipes.MIN_EPOCHS} to {recipes.MAX_EPOCHS} epochs"
    assert f"or {recipes.MANY_EPOCHS} epochs of at most {recipes.MANY_STEPS:,} steps: {limits}" in table
    assert [recipes.scratch(rows, 2)["train"]["batch_size"] for rows in (1280, 640)] == [64, 32]
