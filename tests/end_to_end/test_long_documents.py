"""Long documents and several columns, through the whole way: head, tail, both, windows; segments."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.helpers.files import write_csv
from tests.helpers.runs import go_on, lines, losses, stopped_at, tiny, trained
from txclf import Classifier
from txclf.config import run_config
from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.data import shards
from txclf.data.batches import TokenRows
from txclf.data.prepare import prepare
from txclf.evaluation import evaluate
from txclf.inference import bundle
from txclf.prediction import predict
from txclf.training.train import train

WINDOWS = ["data.truncation=windows", "data.window_overlap=2", "data.max_windows=3", "tokenizer.max_length=6"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a csv file of 300 rows: 1 to 30 random words, and the label's word at a random position."""
    draw = random.Random(0)
    rows = []
    for number in range(300):
        label = draw.choice(["pos", "neg"])
        words = draw.choices([f"w{number}" for number in range(40)], k=draw.randint(1, 30))
        words.insert(draw.randint(0, len(words)), "good" if label == "pos" else "bad")
        rows.append((" ".join([*words, str(number % 7)]), label))
    return write_csv(tmp_path_factory.mktemp("long") / "train.csv", rows)


@pytest.mark.parametrize("long", ["tail", "head_tail", "windows"])
def test_truncation_is_the_same_in_training_evaluation_and_prediction(tmp_path: Path, data: str, long: str) -> None:
    words = [f"data.truncation={long}", f"data.test={data}", "tokenizer.kind=word", *WINDOWS[1:]]
    run, summary = trained(tmp_path, data, *words)
    manifest = shards.load_manifest(summary.prepared)
    capacity = 6 + 2 * 4 if long == "windows" else 6
    table = shards.read_split(summary.prepared, manifest, "test", ["input_ids", "label", "text", "full_length"])
    lengths = np.array([len(ids) for ids in table["input_ids"].to_pylist()])
    assert lengths.tolist() == np.minimum(table["full_length"].to_numpy(), capacity).tolist()
    split = manifest.splits["test"]
    lost = 1 - lengths.sum() / table["full_length"].to_numpy().sum()
    assert split.truncated_token_share == pytest.approx(lost)
    assert split.truncated_rows == int((table["full_length"].to_numpy() > capacity).sum()) > 0
    classifier = Classifier.load(f"{run.run_folder}/model")
    texts = [(text,) for text in table["text"].to_pylist()]
    assert classifier.encode(texts).to_pylist() == table["input_ids"].to_pylist()
    probabilities = classifier.probabilities(texts)
    scored = evaluate.evaluate(run.run_folder, with_baseline=False)
    assert scored["rows"] == 300
    assert scored["accuracy"] == (probabilities.argmax(axis=1) == table["label"].to_numpy()).mean()
    assert evaluate.evaluate(run.run_folder, [data], with_baseline=False)["loss"] == pytest.approx(scored["loss"])
    out = str(tmp_path / "out.jsonl")
    assert predict.predict(f"{run.run_folder}/model", [data], out=out).rows == 300
    validations = [line for line in lines(run) if "valid_rows" in line]
    assert {line["valid_rows"] for line in validations} == {manifest.splits["valid"].rows}


def test_truncation_modes_keep_their_tokens(tmp_path: Path, data: str) -> None:
    kept = {}
    for long in ("head", "tail", "head_tail"):
        run = tiny(tmp_path, data, f"data.truncation={long}", "tokenizer.kind=word", "tokenizer.max_length=6")
        folder = prepare(run)
        table = shards.read_split(folder, shards.load_manifest(folder), "train", ["input_ids", "text"])
        kept[long] = dict(zip(table["text"].to_pylist(), table["input_ids"].to_pylist(), strict=True))
    whole = tiny(tmp_path, data, "tokenizer.kind=word", "tokenizer.max_length=64")
    folder = prepare(whole)
    for row in shards.read_split(folder, shards.load_manifest(folder), "train", ["input_ids", "text"]).to_pylist():
        ids, text = row["input_ids"], row["text"]
        assert kept["head"][text] == ids[:6]
        assert kept["tail"][text] == ids[-6:]
        assert kept["head_tail"][text] == (ids if len(ids) <= 6 else ids[:2] + ids[-4:])


def test_windows_of_a_row_average_their_logits(tmp_path: Path, data: str) -> None:
    run, summary = trained(tmp_path, data, *WINDOWS, "tokenizer.kind=word")
    classifier = Classifier.load(f"{run.run_folder}/model")
    table = shards.read_split(summary.prepared, shards.load_manifest(summary.prepared), "valid", ["input_ids", "label"])
    together = classifier.logits(classifier.rows([table]))
    one_window = 0
    for ids, found in zip(table["input_ids"].to_pylist(), together, strict=True):
        starts = [0]
        while starts[-1] + 6 < len(ids):
            starts.append(min(starts[-1] + 4, len(ids) - 6))
        windows = [ids[start : start + 6] for start in starts]
        assert len(windows) <= 3
        one_window += len(windows) == 1
        with torch.no_grad():
            each = torch.cat([classifier.model(torch.tensor([window])) for window in windows])
        assert found == pytest.approx(each.mean(dim=0).numpy(), abs=1e-5)
    assert 0 < one_window < len(together)
    # The rows that fit a window have the very logits that `head` gives them.
    short = table.filter(pa.array([len(ids) <= 6 for ids in table["input_ids"].to_pylist()]))
    as_head = classifier.logits(TokenRows([short]))
    assert (classifier.logits(classifier.rows([short])) == as_head).all()


def test_windows_short_rows_train_like_head(tmp_path: Path, data: str) -> None:
    head, _ = trained(tmp_path, data, "name=head", "tokenizer.max_length=64", "train.token_dropout=0.2")
    windows, _ = trained(
        tmp_path, data, "name=windows", "tokenizer.max_length=64", "train.token_dropout=0.2", "data.truncation=windows"
    )
    assert losses(windows) == losses(head)


def test_windows_resumed_give_the_same_losses(tmp_path: Path, data: str) -> None:
    words = [*WINDOWS, "train.token_dropout=0.2", "train.adversarial=0.5"]
    words += ["data.shuffle_window=1000"]
    whole, _ = trained(tmp_path, data, "name=whole", *words)
    halted = tiny(tmp_path, data, "name=halted", *words)
    stopped_at(halted, 7)
    train(halted, prepare(halted), go_on)
    assert losses(halted) == losses(whole)


def test_windows_in_micro_batches_take_the_same_step(tmp_path: Path, data: str) -> None:
    whole, _ = trained(tmp_path, data, "name=whole", *WINDOWS, "model.dropout=0")
    parts, summary = trained(tmp_path, data, "name=parts", *WINDOWS, "model.dropout=0", "train.micro_batches=3")
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    assert 0.0 <= summary.padding_share < 0.5


# ------------------------------------------------------------------------------------------------------------- columns


def pairs(path: Path, count: int = 240) -> str:
    """Write rows whose label is the column of the word `key`; both labels have the same words."""
    draw = random.Random(1)
    rows = []
    for number in range(count):
        columns = [" ".join(draw.choices("abcdef", k=draw.randint(2, 9))) for _ in range(2)]
        place = draw.randint(0, 1)
        columns[place] += " key"
        rows.append((columns[0] + f" {number}", columns[1], "ab"[place]))
    return write_csv(path, rows, ("one", "two", "label"))


COLUMNS = ["data.text=[one, two]", "tokenizer.kind=word", "tokenizer.max_length=24", "train.epochs=6"]


def test_segments_distinguish_columns_and_are_in_the_bundle(tmp_path: Path) -> None:
    data = pairs(tmp_path / "pairs.csv")
    # Neither positions nor attention: without segments the model sees a bag of words, the same for both labels.
    words = [*COLUMNS, "model.position_encoding=none", "train.learning_rate=1e-2", "train.epochs=12"]
    words += ["train.token_dropout=0.05", "train.early_stopping_patience=0", "train.monitor=valid_accuracy"]
    run, summary = trained(tmp_path, data, "name=with", *words)
    plain, without = trained(tmp_path, data, "name=without", "model.segment_embeddings=false", *words)
    assert summary.best["valid_accuracy"] > 0.9
    assert without.best["valid_accuracy"] < 0.8
    classifier = Classifier.load(f"{run.run_folder}/model")
    assert classifier.metadata.num_segments == 2
    assert Classifier.load(f"{plain.run_folder}/model").metadata.num_segments == 0
    rows = [("a b key", "c d"), ("a b", "c d key")]
    assert [classifier.labels[number] for number in classifier.probabilities(rows).argmax(axis=1)] == ["a", "b"]
    result = evaluate.evaluate(run.run_folder, [data], with_baseline=False)
    assert result["accuracy"] > 0.9


@pytest.mark.parametrize("long", ["head", "windows"])
def test_segments_resumed_give_the_same_losses(tmp_path: Path, long: str) -> None:
    data = pairs(tmp_path / "pairs.csv")
    words = [
        *COLUMNS,
        "train.epochs=2",
        "train.token_dropout=0.2",
        "data.shuffle_window=1000",
        f"data.truncation={long}",
        "tokenizer.max_length=10",
    ]
    whole, _ = trained(tmp_path, data, "name=whole", *words)
    halted = tiny(tmp_path, data, "name=halted", *words)
    stopped_at(halted, 7)
    train(halted, prepare(halted), go_on)
    assert losses(halted) == losses(whole)


def test_truncation_long_column_leaves_room_for_the_others(tmp_path: Path) -> None:
    rows = [(f"{number} " + "long " * 50, f"answer {label}", label) for number in range(40) for label in ("x", "y")]
    data = write_csv(tmp_path / "pairs.csv", rows, ("one", "two", "label"))
    run = tiny(tmp_path, data, "data.text=[one, two]", "tokenizer.kind=word")
    folder = prepare(run)
    manifest = shards.load_manifest(folder)
    for row in shards.read_split(folder, manifest, "train", ["input_ids", "full_length"]).to_pylist():
        assert len(row["input_ids"]) == 16
        assert row["input_ids"][13] == manifest.separator_id
        assert row["full_length"] == 51 + 1 + 2


def test_load_bundle_of_format_1_truncates_columns_at_the_end(tmp_path: Path) -> None:
    data = pairs(tmp_path / "pairs.csv", 60)
    run, _ = trained(
        tmp_path, data, *COLUMNS, "model.segment_embeddings=false", "tokenizer.max_length=8", "train.epochs=1"
    )
    path = f"{run.run_folder}/model/{bundle.METADATA}"
    description = storage.read_json(path)
    for key in ("truncation", "num_segments"):
        del description[key]
    names = {
        "num_layers": "layers",
        "hidden_size": "width",
        "num_heads": "heads",
        "intermediate_size": "feedforward",
        "position_encoding": "positions",
    }
    model = {old: description["model"][new] for new, old in names.items()}
    storage.write_json(path, {**description, "format": 1, "model": model})
    old = Classifier.load(f"{run.run_folder}/model")
    assert old.encode([("a b c d e f a b c d", "e f")])[0].as_py() == old.encode([("a b c d e f a b",)])[0].as_py()
    assert old.probabilities([("a b", "c")]).shape == (1, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.truncation=windows", "data.window_overlap=256"], "`data.window_overlap` (256): set it below"),
        (["model.segment_embeddings=true"], "`model.segment_embeddings: true` needs several text columns"),
        (
            ["task=seq2seq", "data.truncation=windows"],
            "`data.truncation: windows` is not supported with `task: seq2seq`",
        ),
        (
            ["task=seq2seq", "data.text=[a, b]", "model.segment_embeddings=true"],
            "`model.segment_embeddings: true` is not supported with",
        ),
        (["data.max_windows=0"], "data.max_windows"),
    ],
)
def test_load_incompatible_settings_raises(words: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        run_config.load(None, words)
    assert message in str(error.value)


def test_multilabel_rows_have_windows_and_segments(tmp_path: Path) -> None:
    draw = random.Random(2)
    rows = []
    for number in range(200):
        tags = [tag for tag in ("red", "blue") if draw.random() < 0.5]
        words = draw.choices("abcdef", k=draw.randint(2, 20)) + tags
        rows.append((" ".join(draw.sample(words, len(words))), f"x{number % 5}", ",".join(tags)))
    data = write_csv(tmp_path / "tags.csv", rows, ("one", "two", "label"))
    words = [*COLUMNS, *WINDOWS, "task=multilabel", f"data.test={data}", "train.learning_rate=1e-2", "train.epochs=8"]
    run, summary = trained(tmp_path, data, "name=memory", *words)
    classifier = Classifier.load(f"{run.run_folder}/model")
    assert (classifier.metadata.truncation.mode, classifier.metadata.num_segments) == ("windows", 2)
    scored = evaluate.evaluate(run.run_folder, with_baseline=False)
    assert scored["rows"] == 200
    # The same rows in another order.
    again = evaluate.evaluate(run.run_folder, [data], with_baseline=False)
    assert again["loss"] == pytest.approx(scored["loss"])
    assert summary.best["valid_map"] > 0.8
