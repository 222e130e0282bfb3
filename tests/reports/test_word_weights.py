"""Word weights of mistakes: shown like the text, and faithful to a model that depends on few words."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.files import write_csv
from tests.helpers.runs import trained
from txclf import Classifier
from txclf.inference.occlusion import Explanation
from txclf.reports import error_analysis, word_weights


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """Return a model for which one word of ten decides."""
    folder, draw = tmp_path_factory.mktemp("words"), np.random.default_rng(0)
    fill = ["the", "of", "and", "it", "was", "so", "very", "much"]
    rows = [
        (
            " ".join([*draw.choice(fill, 5), ("good", "bad")[number % 2], *draw.choice(fill, 4), str(number)]),
            f"{number % 2}",
        )
        for number in range(200)
    ]
    run, _ = trained(
        folder / "runs", write_csv(folder / "train.csv", rows), "train.epochs=4", "train.learning_rate=1e-2"
    )
    return Classifier.load(f"{run.run_folder}/model")


def test_weights_of_the_deciding_words_are_faithful(classifier: Classifier) -> None:
    texts = ["it was so very good and much of the rest", "the bad of it and so much was very long"]
    found = word_weights.fidelity(classifier, [classifier.explain(text) for text in texts])
    assert found is not None
    assert found.rows == 2
    assert found.probability > 0.9
    assert found.strongest > 0.3 > found.random
    # The probabilities are those of the texts without the words.
    (explanation,) = [classifier.explain(texts[0])]
    deciding = [word for word, _ in explanation.weights()[:2]]
    kept = " ".join(word for word in texts[0].split() if word not in deciding)
    (alone,) = [word_weights.fidelity(classifier, [explanation])]
    assert alone is not None
    column = classifier.labels.index(explanation.label)
    expected = explanation.probability - classifier.probabilities([(kept,)])[0, column]
    assert alone.strongest == pytest.approx(expected, abs=1e-5)


def test_short_texts_do_not_count(classifier: Classifier) -> None:
    assert word_weights.fidelity(classifier, [classifier.explain("good and bad")]) is None
    assert word_weights.fidelity(classifier, []) is None


def test_words_of_several_columns_are_left_out_of_their_column() -> None:
    columns = {"title": [("a", 1.0), (" ", None), ("b", 2.0)], "body": [("c", 3.0), ("  ", None), ("d", 4.0)]}
    explanation = Explanation("x", 0.5, columns)
    assert word_weights._without(explanation, [1, 2]) == ("a", "d")
    assert word_weights._without(explanation, []) == ("a b", "c d")


def test_pieces_long_texts_are_shortened_like_the_text() -> None:
    words = [("x" * 500, 1.0), (" ", None), ("y" * 500, -2.0), (" z", None)]
    found = word_weights.pieces([words])
    assert "".join(text for text, _ in found) == error_analysis.shortened("".join(text for text, _ in words))
    assert word_weights.pieces([[("a", 0.5)], [("b", None)]]) == [("a", 0.5), ("\n", None), ("b", None)]
