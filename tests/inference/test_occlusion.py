"""Word weights by occlusion."""

from __future__ import annotations

import math

import numpy as np
import pytest

from txclf.inference import occlusion
from txclf.inference.occlusion import Explanation, Row, Span


@pytest.mark.parametrize(
    "row", [("a b c", ""), ("", "x"), ("word " * 300,), ("a " * 100, "b " * 3, "c " * 50), ("日本 語a b",), ("  ",)]
)
@pytest.mark.parametrize("max_spans", [1, 4, 64])
def test_split_row_covers_every_word_once(row: Row, max_spans: int) -> None:
    spans = occlusion.split_row(row, max_spans)
    assert len(spans) <= max(max_spans, len(row))
    texts = ["".join(text[span.start : span.end] for span in spans if span.column == i) for i, text in enumerate(row)]
    assert ["".join(text.split()) for text in texts] == ["".join(text.split()) for text in row]
    columns = occlusion.weighted_texts(row, spans, [0.0] * len(spans))
    assert tuple("".join(text for text, _ in column) for column in columns) == row
    occluded = occlusion.occluded_rows(row, spans)
    assert len(occluded) == (len(spans) if len(spans) > 1 else 0)
    for other, span in zip(occluded, spans, strict=False):
        without = row[span.column][: span.start] + row[span.column][span.end :]
        assert other[span.column].split() == without.split()
        assert len(without) - len(other[span.column]) in (0, 1)


def test_occluded_rows_have_the_spaces_of_a_text_that_never_had_the_word() -> None:
    row = ("win it  now", "")
    spans = occlusion.split_row(row)
    assert [other[0] for other in occlusion.occluded_rows(row, spans)] == ["it  now", "win  now", "win it "]
    assert [other[0] for other in occlusion.occluded_rows(("a b c",), occlusion.split_row(("a b c",)))] == [
        "b c",
        "a c",
        "a b",
    ]


def test_split_row_takes_scripts_without_spaces_by_character() -> None:
    assert occlusion.split_row(("日本 語a b",)) == [
        Span(0, 0, 1),
        Span(0, 1, 2),
        Span(0, 3, 4),
        Span(0, 4, 5),
        Span(0, 6, 7),
    ]


@pytest.mark.parametrize("is_multilabel", [False, True])
def test_weights_are_drops_in_log_odds(is_multilabel: bool) -> None:
    rows = np.array([[0.5, 0.5], [0.25, 0.75], [0.75, 0.25]], np.float32)
    positive, negative = occlusion.weights(rows, 0, is_multilabel)
    assert positive == pytest.approx(math.log(3))
    assert negative == pytest.approx(-math.log(3))
    assert occlusion.weights(rows[:1], 0, is_multilabel) == []


def test_weights_of_a_certain_answer_are_those_of_the_other_probabilities() -> None:
    """Next to 1, float32 knows no probabilities between which 1e-8 and 1e-10 lie."""
    rows = np.array([[1, 1e-10, 0], [1, 1e-8, 0]], np.float32)
    assert occlusion.weights(rows, 0, False) == [pytest.approx(math.log(100), abs=1e-3)]


def test_weights_of_certain_answers_are_finite() -> None:
    (weight,) = occlusion.weights(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), 0, True)
    assert math.isfinite(weight)


def test_weighted_texts_gives_spaces_no_weight() -> None:
    columns = occlusion.weighted_texts(("a  b", ""), [Span(0, 0, 1), Span(0, 3, 4)], [0.5, -1.0])
    assert columns == [[("a", 0.5), ("  ", None), ("b", -1.0)], []]


def test_explanation_shows_escaped_texts_and_sorts_its_words() -> None:
    pieces: list[tuple[str, float | None]] = [("<b>", 0.5), (" ", None), ("bad\x1b", -1.0)]
    explanation = Explanation("yes & no", 0.75, {"text": pieces})
    assert explanation.weights() == [("<b>", 0.5), ("bad\x1b", -1.0)]
    html = explanation._repr_html_()
    assert "<b>yes &amp; no</b> 0.7500" in html
    assert '<span style="background:rgba(0,128,0,0.25)" title="+0.500">&lt;b&gt;</span> ' in html
    assert 'rgba(208,0,0,0.50)" title="-1.000">bad\\x1b</span>' in html
