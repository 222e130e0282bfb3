"""The page of `txclf serve` in a real browser, of each task."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.browsing import SIZES, Open, looks_right
from tests.helpers.serving import Server, untrained


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a server without Ray for each task and return the addresses. `multilabel` requires a token."""
    folder = tmp_path_factory.mktemp("serve")
    settings: dict[str, dict[str, Any]] = {
        "classify": {},
        "multilabel": {"data": {"text": ["title", "body"]}},
        "seq2seq": {"data": {"target": "target"}},
    }
    examples = {
        "classify": ("--example", "the lazy <b>dog</b>"),
        "multilabel": ("--example", '{"title": "a", "body": "b"}'),
    }
    tokens = {"multilabel": {"TXCLF_SERVE_TOKEN": "s3cret"}}
    started = {
        task: Server(
            untrained(folder, task=task, **some), "--replicas", "0", *examples.get(task, ()), **tokens.get(task, {})
        )
        for task, some in settings.items()
    }
    yield {task: server.url for task, server in started.items()}
    for server in started.values():
        server.end()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_serve_page_keyboard_alone_predicts_and_explains(
    tried: Open, servers: dict[str, str], size: str, scheme: str
) -> None:
    page = tried(servers["classify"], size, scheme)
    page.keyboard.type("the quick <img src=x onerror=alert(1)> fox")  # the field has the focus
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#words span")
    assert page.locator("#scores li").count() == 3
    shares = page.eval_on_selector_all("#scores .fill", "all => all.map(one => parseFloat(one.style.width))")
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert shares == sorted(shares, reverse=True)
    assert page.locator("#words").text_content() == "the quick <img src=x onerror=alert(1)> fox"
    assert page.locator("img").count() == 0
    first = page.locator("#scores [aria-pressed=true]").get_attribute("data-label")
    # Tab past the two buttons to the second label and select it.
    for _ in range(4):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "first => document.querySelector('#scores [aria-pressed=true]').dataset.label !== first", arg=first
    )
    second = page.locator("#scores li:nth-child(2) button").get_attribute("data-label")
    assert second in page.locator("#explanation").text_content()
    looks_right(page, size, scheme)
    page.fill("textarea", "  ")
    page.click("#go")
    page.wait_for_selector("[role=alert]:has-text('blank')")


def test_serve_page_label_chosen_during_an_explanation_leaves_the_button(tried: Open, servers: dict[str, str]) -> None:
    page = tried(servers["classify"])
    held: list[Any] = []
    page.route("**/explain", lambda route: held.append(route))
    page.fill("textarea", "the quick fox")
    page.click("#go")
    page.click("#scores li:nth-child(2) button")
    while len(held) < 2:
        page.wait_for_timeout(50)
    assert page.locator("#go").is_enabled()
    for one in held:
        one.continue_()
    page.wait_for_selector("#scores li:nth-child(2) [aria-pressed=true]")
    assert page.locator("#go").is_enabled()


def test_serve_page_multilabel_shows_columns_and_thresholds_after_the_token(
    tried: Open, servers: dict[str, str]
) -> None:
    page = tried(servers["multilabel"], "phone")
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=alert]:has-text('wrong')")
    page.fill("#token", "s3cret")
    page.keyboard.press("Enter")
    page.wait_for_selector("textarea[name=body]")
    page.fill("textarea[name=title]", "the fox")
    page.fill("textarea[name=body]", "a lazy dog")
    page.click("#go")
    page.wait_for_selector("#words span")
    assert page.locator("#scores .mark").count() == 3
    given = page.locator("#scores .predicted button").evaluate_all("all => all.map(one => one.dataset.label)")
    assert "low" in given
    assert "high" not in given
    assert page.locator("#words .words").all_text_contents() == ["the fox", "a lazy dog"]


def test_serve_page_example_batch_and_curl(tried: Open, servers: dict[str, str]) -> None:
    page = tried(servers["classify"])
    page.click("#examples button")
    page.wait_for_selector("#words span")
    assert page.locator("#words").text_content() == "the lazy <b>dog</b>"

    page.click("#batch summary")
    page.fill("#lines", "the fox\n\nit's a <i>dog</i>\n" + "quick\n" * 300)  # more than one request holds
    page.click("#many button")
    page.wait_for_selector("#rows tbody tr:nth-child(302)")
    assert page.locator("#rows thead th").all_text_contents() == ["text", "label", "probability"]
    assert page.locator("#rows tbody tr:nth-child(2) td").first.text_content() == "it's a <i>dog</i>"

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.fill("#field-0", "it's")
    page.click("#curl")
    page.wait_for_selector("#curl:has-text('Copied')")
    command = page.evaluate("navigator.clipboard.readText()")
    answer = subprocess.run(["sh", "-c", command], capture_output=True, check=True, text=True)
    assert json.loads(answer.stdout)["predictions"][0]["label"] in ("low", "mid", "high")
    page.click("#copy")
    page.wait_for_selector("#copy:has-text('Copied')")
    lines = str(page.evaluate("navigator.clipboard.readText()")).splitlines()
    assert (len(lines), lines[0]) == (303, "text\tlabel\tprobability")


def test_serve_page_curl_of_several_columns_has_no_token(tried: Open, servers: dict[str, str]) -> None:
    page = tried(servers["multilabel"])
    page.fill("#token", "s3cret")
    page.keyboard.press("Enter")
    page.click("#examples button")
    page.wait_for_selector("#words span, #explanation:has-text('word')")
    assert page.input_value("#field-1") == "b"
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    page.click("#curl")
    page.wait_for_selector("#command:not([hidden])")
    command = str(page.locator("#command").text_content())
    assert "s3cret" not in command
    assert "Bearer $TXCLF_SERVE_TOKEN" in command
    page.click("#batch summary")
    page.fill("#lines", "a title\tand a body\nonly a title")
    page.click("#many button")
    page.wait_for_selector("#rows tbody tr:nth-child(2)")
    assert page.locator("#rows tbody td:nth-child(2)").all_text_contents() == ["and a body", ""]


def test_serve_page_seq2seq_shows_the_output(tried: Open, servers: dict[str, str]) -> None:
    page = tried(servers["seq2seq"])
    page.fill("textarea", "the quick brown fox")
    page.click("#go")
    page.wait_for_selector("#output:not([hidden])")
    assert not page.locator("#labels").is_visible()
    page.goto(servers["seq2seq"] + "/docs")
    assert page.locator("h2 code").all_text_contents() == [
        "POST /predict",
        "POST /explain",
        "GET /model",
        "GET /healthz",
        "GET /metrics",
    ]
