"""The documentation says what is so: its commands, keys, links and Python code, and the site that is made of it."""

from __future__ import annotations

import csv
import importlib.util
import os
import random
import re
import shlex
import shutil
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
import typer.main
import yaml
from pydantic import BaseModel

from txclf.cli import main
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
APP: Any = typer.main.get_command(main.app)
OF_A_RUN = {"config", "prepare", "train", "tune", "check"}
"""Commands that take settings of the run file as words."""


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of some languages."""
    return [text for _, language, text in BLOCK.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


# ------------------------------------------------------------------------------------------------------------ commands


def calls(script: str) -> Iterator[list[str]]:
    """The words after each `txclf` of a shell script."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        try:
            words = list(lexer)
        except ValueError:  # a part of a longer quotation
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if word and not set(word) - set("|&;()<>"):
                for place, part in enumerate(command):
                    if part.rsplit("/", 1)[-1] == "txclf" and all("=" in before for before in command[:place]):
                        yield command[place + 1 :]
                        break
                command = []
            else:
                command.append(word)


def found_command(words: list[str]) -> tuple[Any, list[str], str]:
    """The command that words call, the words left, and its name."""
    command, names = APP, list[str]()
    while isinstance(command, typer.core.TyperGroup) and words and not words[0].startswith("-"):
        name, *words = words
        assert name in command.commands, f"no command `{' '.join([*names, name])}`"
        command = command.commands[name]
        names.append(name)
    return command, words, " ".join(names)


def test_commands_are_found_in_scripts() -> None:
    script = "A=1 .venv/bin/txclf train a.yaml \\\n  x=1  # said\ncd b && txclf jobs list | grep txclf\necho txclf\n"
    assert list(calls(script)) == [["train", "a.yaml", "x=1"], ["jobs", "list"]]


@each_page
def test_commands_can_be_typed(page: Path) -> None:
    for words in (words for script in blocks(page, "sh", "console", "bash") for words in calls(script)):
        command, rest, name = found_command(words)
        if rest in (["--help"], ["--version"]):
            continue
        if name == "submit":
            rest = [word for word in rest if word not in ("--resume", "--no-wait")]
            _, inner, verb = found_command(rest)
            _settings(verb, inner, page)
            continue
        # A number that stands for itself, as in `--workers N`, is one.
        rest = ["1" if re.fullmatch("[A-Z]", word) else word for word in rest]
        address = ["--address", "http://head:8265"] if name.startswith("jobs") and "--address" not in rest else []
        command.make_context(name, [*rest, *address])  # raises for an unknown option and for a missing argument
        _settings(name, rest, page)


def _settings(name: str, words: list[str], page: Path) -> None:
    """Words over a run file are ones that it takes."""
    for word in words if name in OF_A_RUN else []:
        if "=" in word and not word.startswith("-"):
            _known(word.partition("=")[0], page)


@each_page
def test_commands_named_in_prose_exist(page: Path) -> None:
    for span in re.findall(r"`(txclf [^`]*)`", prose(page)):
        words = [word for word in span.split()[1:] if word not in ("VERB", "…")]
        command, rest, name = found_command(words)
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
        for word in rest:
            if word.startswith("--") and name != "submit":
                assert word.partition("=")[0] in known, f"{page.name}: `{span}`: no option {word}"


# ---------------------------------------------------------------------------------------------------------------- keys


def _known(dotted: str, page: Path) -> None:
    """Fails where a dotted key is not one of the run file."""
    kind: Any = RunConfig
    for part in dotted.split("."):
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return  # below a mapping, such as tune.space
        assert part in kind.model_fields, f"{page.name}: no key `{dotted}` of the run file"
        kind = kind.model_fields[part].annotation


@each_page
def test_run_files_shown_are_valid(page: Path) -> None:
    for text in blocks(page, "yaml"):
        settings = yaml.load(text, Loader=run_config._Loader)
        if isinstance(settings, dict) and set(settings) & set(RunConfig.model_fields):
            run_config.parse(settings, f"{page.name}: {text}")


def test_a_wrong_run_file_would_be_found() -> None:
    with pytest.raises(ConfigError, match="epoch"):
        run_config.parse({"train": {"epoch": 3}})
    with pytest.raises(AssertionError, match="no key"):
        _known("train.epoch", ROOT / "README.md")


@each_page
def test_keys_named_in_prose_exist(page: Path) -> None:
    sections = "data|tokenizer|model|train|generate|compute|tune"
    files = {"csv", "jsonl", "parquet", "json", "yaml", "safetensors", "onnx", "pt2", "int8", "py", "tsv"}
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        match = re.match(rf"(({sections})\.(\w+)[\w.]*)(?=$|[:=\s])", span)
        if match and match[3] not in files and page.name not in ("0016-ten-floors.md", "CONTRIBUTING.md"):
            _known(match[1], page)


# --------------------------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives to a page's headings, and the site too."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    return found


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)]*))?\)", prose(page)):
        place = page.parent / target if target else page
        assert place.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(place), f"{page.name} links to {target}#{anchor}"


# -------------------------------------------------------------------------------------------------------------- python


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with the files that the page names, of 120 rows, and the run `mine`."""
    generator = random.Random(0)
    words = {"good": ["fine", "sunny", "glad", "warm"], "bad": ["grim", "rain", "sad", "cold"]}
    rows = [
        {"text": " ".join(generator.choices(words[label], k=6)) + f" {number}", "label": label}
        for number in range(60)
        for label in words
    ]
    for name, some in (("train", rows[:100]), ("test", rows[100:]), ("new", rows[:5])):
        _write(tmp_path / f"{name}.csv", some)
    _write(tmp_path / "pairs.csv", [{"text": row["text"], "answer": row["label"]} for row in rows])
    settings = {
        "data": {"train": "train.csv", "test": "test.csv"},
        "tokenizer": {"vocab_size": 300, "max_length": 32},
        "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16},
        "train": {"epochs": 1, "batch_size": 16},
    }
    (tmp_path / "mine.yaml").write_text(run_config.written(settings))
    return tmp_path


BEFORE = """from txclf import config, prepare, train
mine = config.load("mine.yaml", ["name=mine"])
train.train(mine, prepare.prepare(mine))
"""


def test_the_python_page_runs(data: Path) -> None:
    """Its blocks one after the other, but for those of Ray, in a process of their own."""
    shown = [text for text in blocks(ROOT / "docs/guide/python.md", "python") if "cluster." not in text]
    assert len(shown) > 7
    output = _run([BEFORE, *shown], data)
    assert "2 problems" in output  # the error that the page shows
    assert "finished" in output  # what `inspect` says of the run
    assert (data / "predictions.parquet").exists()


@pytest.mark.faults
def test_the_python_page_runs_on_ray(data: Path) -> None:
    """All of it: four times that Ray starts workers or trials."""
    _run([BEFORE, *blocks(ROOT / "docs/guide/python.md", "python")], data)
    assert (data / "runs/search/search.json").exists()
    assert (data / "runs/on-ray/summary.json").exists()


def _run(parts: list[str], folder: Path) -> str:
    (folder / "page.py").write_text("\n".join(parts))
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_code_compiles(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")


# ---------------------------------------------------------------------------------------------------------------- site


@pytest.fixture(scope="module")
def reference() -> Any:
    """The generator of the reference."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/site/reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_key(reference: Any) -> None:
    page = reference.run_file()
    for name, field in RunConfig.model_fields.items():
        kind: Any = field.annotation
        section = isinstance(kind, type) and issubclass(kind, BaseModel)
        for key in [f"{name}.{one}" for one in kind.model_fields] if section else [name]:
            assert f"# {key}\n" in page
    assert "integer ≥ 1 · default `64`" in page.partition("### train.batch_size\n")[2].partition("###")[0]
    assert "\n#### tune.scheduler.grace_period\n" in page


def test_the_reference_has_every_command_and_option(reference: Any) -> None:
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
    """The site, built as `make check` builds it."""
    pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
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


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text())
        fetched = [tag for tag in tags if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag)]
        assert not fetched, f"{page}: {fetched}"


def test_links_to_files_of_the_repository_lead_to_pages(site: Path) -> None:
    page = (site / "guide/article/index.html").read_text()
    assert 'href="../../files/jobs/seed_glove.yaml/"' in page
    assert "tokenizer" in (site / "files/jobs/seed_glove.yaml/index.html").read_text()
    home = (site / "index.html").read_text()
    assert 'href="guide/report/"' in home
    assert 'href="contributing/"' in home


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site, served."""
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
    """It fits the window, finds a key, changes its colours, and says nothing on the console."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright here: make test-browser installs it")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    trouble: list[str] = []
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium here (make test-browser): {str(error).splitlines()[0]}")
        context = browser.new_context(viewport={"hidden_size": width, "height": 800}, color_scheme="dark")
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("request", lambda request: trouble.append(request.url) if _elsewhere(request.url, address) else None)
        for place in ("", "tutorial/", "guide/run-file/", "guide/results/", "reference/cli/", "reference/python/"):
            page.goto(address + place)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"/{place} is too wide"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click("form[data-md-component=palette] label:not([hidden])")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
        page.goto(address)
        page.click(".md-search__input" if width > 1000 else ".md-header label[for=__search]")
        page.keyboard.type("token_dropout")
        page.wait_for_selector(".md-search-result__link")
        assert "reference/run-file" in page.get_attribute(".md-search-result__link", "href")
        browser.close()
    assert trouble == []


def _elsewhere(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))
