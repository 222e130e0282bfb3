"""A notebook's way through txclf: a DataFrame, a model, its scores, its reasons, and scikit-learn around it."""

from __future__ import annotations

import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import txclf

SETTINGS: dict[str, Any] = {
    "data": {"text": "review", "label": "stars"},
    "tokenizer": {"vocab_size": 270, "max_length": 16},
    "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16},
    "train": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "precision": "fp32"},
}


class Tags(HTMLParser):
    """Parser that checks that tags are closed in order, and collects attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attributes}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def as_shown(result: Any) -> str:
    """Return what a notebook shows of a result: whole markup that fetches nothing."""
    shown: str = result._repr_html_()
    tags = Tags()
    tags.feed(shown)
    assert not tags.open
    assert tags.attributes <= {"style", "title"}
    return shown


@pytest.fixture
def frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Return reviews with one, two or three stars, as a frame with an index of its own."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    words = {1: ["bad", "grim", "rain"], 2: ["plain", "so so", "grey"], 3: ["good", "fine", "sun"]}
    rows = [(" ".join(draw.choices(words[stars], k=5)), stars) for _ in range(50) for stars in words]
    return pd.DataFrame(rows, columns=["review", "stars"], index=range(1000, 1150))


def test_notebook_from_a_frame_to_a_model_and_its_reasons(frame: pd.DataFrame) -> None:
    train, test = frame[:120], frame[120:]
    summary = txclf.train(SETTINGS, data=train, test=test)
    assert "valid_loss" in as_shown(summary)

    scores = txclf.evaluate("runs/run")
    assert scores["rows"] == 30
    assert "Scores on 30 rows" in as_shown(scores)
    assert scores["accuracy"] > 0.8

    answers = txclf.predict("runs/run/model", test)
    assert answers.index.equals(test.index)
    assert (answers["label"].astype(int) == test["stars"]).mean() == pytest.approx(scores["accuracy"])

    classifier = txclf.Classifier.load("runs/run/model")
    assert "review" in as_shown(classifier)
    explanation = classifier.explain("rain fine rain", "3")
    assert "fine" in as_shown(explanation)
    assert explanation.weights()[0][0] == "fine"

    head = LogisticRegression().fit(classifier.embed(train["review"].tolist()), train["stars"])
    assert head.score(classifier.embed(test["review"].tolist()), test["stars"]) > 0.8


def test_notebook_cross_validation_of_an_estimator(frame: pd.DataFrame) -> None:
    settings = {**SETTINGS, "model": {**SETTINGS["model"], "ngrams": False}}
    estimator = txclf.TextClassifier(settings)
    found = cross_val_score(estimator, frame[["review"]], frame["stars"], cv=3)
    assert np.min(found) > 0.8
    assert not Path("runs").exists()
