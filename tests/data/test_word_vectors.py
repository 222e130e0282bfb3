"""Pre-trained word vectors: file formats, damage, matching, coverage, and runs that start from them."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.encoders import write_encoder
from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import go_on, losses, stopped_at, tiny
from txclf import Classifier
from txclf.artifacts import checkpoints
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.data import shards, word_vectors
from txclf.data.prepare import prepare
from txclf.data.tokenizer import parse_tokenizer
from txclf.training.progress import Progress
from txclf.training.train import RunSummary, check_folder, train

WIDTH = 4
TABLE: dict[str, Sequence[float]] = {
    "the": [0.1, -0.2, 3e-2, 4.0],
    "fox": [1, 2, 3, 4],
    ",": [0.5, 0.5, 0.5, 0.5],
    "ünï": [9, 8, 7, 6],
}
VOCABULARY = {"the": 0, "The": 1, "FOX": 2, "ünï": 3, "absent": 4}


def content(table: Mapping[str, Sequence[float]], header: bool = False, ending: str = "\n") -> bytes:
    lines = [" ".join([word, *map(str, numbers)]) for word, numbers in table.items()]
    return (f"{len(table)} {WIDTH}\n" * header + "".join(line + ending for line in lines)).encode()


def packed(path: Path, data: bytes, kind: str, others: dict[str, bytes] | None = None) -> str:
    path = path.with_name(path.name + kind)
    if kind == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, part in {"a.txt": data, **(others or {})}.items():
                archive.writestr(name, part)
    else:
        path.write_bytes(gzip.compress(data) if kind == ".gz" else data)
    return str(path)


@pytest.mark.parametrize("kind", ["", ".gz", ".zip"])
@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("ending", ["\n", " \n", "\r\n"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_read_every_file_format_gives_the_same_vectors(
    tmp_path: Path, kind: str, header: bool, ending: str, scheme: str
) -> None:
    path = packed(tmp_path / "v.txt", content(TABLE, header, ending), kind)
    found = word_vectors.read(scheme + path, WIDTH, VOCABULARY, 6)
    assert found.fit.tolist() == [
        word_vectors.EXACT,
        word_vectors.LOWERED,
        word_vectors.LOWERED,
        word_vectors.EXACT,
        0,
        0,
    ]
    assert found.matrix[[0, 1, 2, 3]] == pytest.approx(np.array([TABLE[word] for word in ("the", "the", "fox", "ünï")]))
    assert not found.matrix[4:].any()
    assert (found.lines, found.num_damaged) == (4, 0)


def test_read_best_match_wins_then_the_first(tmp_path: Path) -> None:
    table: dict[str, Sequence[float]] = {"THE": [1] * 4, "the": [2] * 4, "The": [3] * 4, "Fox": [4] * 4, "FoX": [5] * 4}
    lines = content(table) + content({"the": [9] * 4})
    for data in (lines, content(dict(reversed(table.items())))):
        path = packed(tmp_path / "v.txt", data, "")
        found = word_vectors.read(path, WIDTH, {"the": 0, "The": 1, "tHe": 2, "fox": 3}, 4)
        assert found.matrix[:3, 0].tolist() == [2, 3, 2]
        assert found.fit.tolist() == [word_vectors.EXACT, word_vectors.EXACT, word_vectors.LOWERED, word_vectors.FOLDED]
        assert found.matrix[3, 0] == (4 if data == lines else 5)


def test_read_damaged_lines_are_skipped_and_reported(tmp_path: Path) -> None:
    good = content({f"w{number}": [number] * 4 for number in range(1200)}).splitlines(keepends=True)
    bad = {
        3: (b"the 1 2 3\n", "3 numbers, expected 4"),
        40: (b"the 1 2 x 4\n", "a value that is not a number"),
        500: (b"the 1 2 nan 4\n", "a number that is not finite"),
        501: (b"the 1 2 3 4 5\n", "more than 4 numbers"),
        777: (b"\xff\xfe 1 2 3 4\n", "not valid UTF-8"),
    }
    for number, (line, _) in sorted(bad.items()):
        good.insert(number - 1, line)
    good.insert(800, b"\n")
    good += [b". . . 1 2 3 4\n", b"the 7 7 7 7"]
    path = packed(tmp_path / "v.txt", b"".join(good), "")
    found = word_vectors.read(path, WIDTH, {"the": 0, "w1199": 1}, 2)
    assert found.damaged == [(number, reason) for number, (_, reason) in sorted(bad.items())]
    assert found.matrix.tolist() == [[7] * 4, [1199] * 4]


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (content(TABLE).replace(b" 4\n", b"\n"), "", "its vectors have 4 numbers, `model.hidden_size` is 5"),
        (b"3 7\na 1 2 3 4 5 6 7\n", "", "its vectors have 7 numbers, `model.hidden_size` is 5"),
        (b"", "", "holds no vectors"),
        (b"2 5\n" + bytes(range(60)) * 30, "", "Convert binary vectors to text"),
        (b"a 1 2 3 4 5\n" * 20 + b"b 1 2\n" * 9, "", "9 of 29 lines are damaged:\n  line 21: 2 numbers, expected 5"),
        (b"99 5\na 1 2 3 4 5\n", "", ""),
        (content(TABLE)[:40], ".zip", "but has `a.txt` (4 numbers), `b.txt` (7 numbers)"),
    ],
)
def test_read_invalid_file_is_refused(tmp_path: Path, data: bytes, kind: str, message: str) -> None:
    path = packed(tmp_path / "v.txt", data, kind, {"b.txt": b"a 1 2 3 4 5 6 7\n"})
    if not message:  # a file that ends early: what is there is taken, and it is told
        found = word_vectors.read(path, 5, {"a": 0}, 1)
        assert found.damaged == [(1, "it announces 99 words, but 1 follow")]
        return
    with pytest.raises(DataError) as error:
        word_vectors.read(path, 5, {"a": 0}, 1)
    assert message in str(error.value)
    assert path in str(error.value)


@pytest.mark.parametrize("kind", [".gz", ".zip"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"none" + data[4:]])
def test_read_damaged_archive_is_refused(tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]) -> None:
    table: dict[str, Sequence[float]] = {
        f"w{number}": np.random.default_rng(number).random(4).tolist() for number in range(500)
    }
    path = packed(tmp_path / "v.txt", content(table), kind)
    Path(path).write_bytes(damage(Path(path).read_bytes()))
    with pytest.raises(DataError) as error:
        word_vectors.read(path, WIDTH, {"w1": 0}, 1)
    assert "cannot be read" in str(error.value)


def test_read_archive_takes_the_file_of_the_right_width(tmp_path: Path) -> None:
    path = packed(tmp_path / "v.txt", content(TABLE), ".zip", {"b.txt": b"the 1 2 3 4 5 6 7\n", "c.txt": b"the 5 6\n"})
    assert word_vectors.read(path, 7, {"the": 0}, 1).matrix.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert word_vectors.read(path, 2, {"the": 0}, 1).matrix.tolist() == [[5, 6]]


def test_filled_unknown_rows_are_drawn_like_the_known() -> None:
    draw = np.random.default_rng(0)
    known = np.arange(6000) < 4000
    matrix = np.where(known[:, None], draw.normal([0, 5, -2, 1], [1, 2, 3, 4], (6000, 4)), 0).astype(np.float32)
    whole = word_vectors.filled(matrix, known, seed=0)
    assert (whole[known] ** 2).mean() * 4 == pytest.approx(1.0, rel=1e-4)
    ratio = whole[known] / matrix[known]
    assert ratio == pytest.approx(np.full_like(ratio, ratio[0, 0]), rel=1e-3)
    assert whole[~known].mean(axis=0) == pytest.approx(whole[known].mean(axis=0), abs=0.03)
    assert whole[~known].std(axis=0) == pytest.approx(whole[known].std(axis=0), rel=0.1)
    assert (word_vectors.filled(matrix, known, seed=0) == whole).all()
    assert (word_vectors.filled(matrix, known, seed=1)[~known] != whole[~known]).any()


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [(f"{text} {'good' if label == 'pos' else 'bad'}", label) for text, label in make_rows(200)]
    return write_csv(tmp_path_factory.mktemp("data") / "train.csv", rows)


WORDS = ["tokenizer.kind=word", "train.token_dropout=0.1", "train.ema_decay=0.9"]


def glove(folder: Path, words: Sequence[str] = ("good", "bad")) -> str:
    draw = np.random.default_rng(3)
    lines = [" ".join([word, *(f"{number:.5f}" for number in draw.normal(0, 2, 16))]) for word in words]
    path = folder / "vectors.txt"
    path.write_text("\n".join(lines))
    return str(path)


def run_with(folder: Path, data: str, *words: str) -> tuple[RunConfig, RunSummary, list[str]]:
    run, notes = tiny(folder, data, *WORDS, *words), list[str]()

    def listen(progress: Progress) -> bool:
        notes.extend(progress.notes)
        return False

    check_folder(run, resume=False)
    return run, train(run, prepare(run), listen), notes


@pytest.mark.parametrize("freeze", [True, False])
def test_train_starts_from_the_vectors_and_keeps_frozen_ones(tmp_path: Path, data: str, freeze: bool) -> None:
    path = glove(tmp_path)
    run, summary, notes = run_with(tmp_path, data, f"model.word_vectors={path}", f"model.freeze_word_vectors={freeze}")
    coverage = summary.vectors
    assert coverage
    assert storage.read_json(f"{run.run_folder}/vectors.json")["found"] == coverage.found == coverage.exact == 2
    assert notes[0].startswith(f"vectors: 2 of {coverage.words} words found")
    tokenizer = parse_tokenizer(shards.tokenizers(summary.prepared)[0])
    table = shards.read_split(summary.prepared, shards.load_manifest(summary.prepared), "train", ["input_ids"])
    tokens = np.concatenate([np.array(ids) for ids in table["input_ids"].to_pylist()])
    rows = [tokenizer.get_vocab()[word] for word in ("good", "bad")]
    assert coverage.words == tokenizer.get_vocab_size() - 4
    assert coverage.type_share == 2 / coverage.words
    assert coverage.token_share == pytest.approx(np.isin(tokens, rows).mean())
    matrix, found = word_vectors.load(summary.prepared, coverage.matrix)
    assert found.nonzero().flatten().tolist() == sorted(rows)
    # The bundle needs neither the file nor the matrix.
    Path(path).unlink()
    storage.remove_file(f"{summary.prepared}/{coverage.matrix}")
    classifier = Classifier.load(f"{run.run_folder}/model")
    weight = classifier.model.embedding.weight.detach().cpu()
    same = (weight == matrix).all(dim=1)
    assert same[rows].tolist() == [freeze] * 2
    assert not same[tokenizer.get_vocab()["film"]]
    assert classifier(["good", "bad"])


def test_train_resumed_without_the_file_gives_the_same_losses(tmp_path: Path, data: str) -> None:
    path = glove(tmp_path)
    words = [f"model.word_vectors={path}", "model.freeze_word_vectors=true", *WORDS]
    whole, _, _ = run_with(tmp_path, data, "name=whole", *words)
    halted = tiny(tmp_path, data, "name=halted", *words)
    check_folder(halted, resume=False)
    stopped_at(halted, 7)
    Path(path).unlink()
    check_folder(halted, resume=True)
    train(halted, prepare(halted), go_on)
    assert losses(halted) == losses(whole)
    (*_, last) = checkpoints.committed(f"{halted.run_folder}/checkpoints")
    matrix, found = word_vectors.load(prepare(halted), storage.read_json(f"{halted.run_folder}/vectors.json")["matrix"])
    assert torch.equal(checkpoints.load(last)["model"]["embedding.weight"][found], matrix[found])


def test_matched_changed_file_is_matched_again(tmp_path: Path, data: str) -> None:
    path = glove(tmp_path)
    run = tiny(tmp_path, data, *WORDS, f"model.word_vectors={path}")
    prepared = prepare(run)
    first = word_vectors.matched(run, prepared)
    assert word_vectors.matched(run, prepared) == first
    glove(tmp_path, ["good", "bad", "film"])
    second = word_vectors.matched(run, prepared)
    assert (second.found, second.matrix == first.matrix) == (3, False)


def test_train_starts_from_an_encoder(tmp_path: Path, data: str) -> None:
    encoder = write_encoder(tmp_path / "encoder", "bert")
    words = [f"model.word_vectors={encoder}", "tokenizer.kind=wordpiece", "model.freeze_word_vectors=true"]
    run, summary, notes = run_with(tmp_path, data, *words)
    assert "(100.0%," in notes[0]
    assert summary.vectors
    matrix, found = word_vectors.load(summary.prepared, summary.vectors.matrix)
    weight = Classifier.load(f"{run.run_folder}/model").model.embedding.weight.detach().cpu()
    assert torch.equal(weight[found], matrix[found])
    # Changed weights are other vectors.
    os.utime(f"{encoder}/model.safetensors", (1, 1))
    assert word_vectors.matched(run, summary.prepared).matrix != summary.vectors.matrix


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.freeze_word_vectors=true"], "`freeze_word_vectors` needs `word_vectors`"),
        (
            ["model.word_vectors=v.txt", "tokenizer.kind=word", "task=seq2seq"],
            "`model.word_vectors: v.txt` is not supported with",
        ),
    ],
)
def test_load_invalid_word_vector_settings_are_refused(words: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        run_config.load(None, words)
    assert message in str(error.value)


def test_require_missing_or_binary_file_is_refused(tmp_path: Path, data: str) -> None:
    for name, message in (("none.txt", "does not exist"), ("google.bin.gz", "binary format")):
        run: Any = tiny(tmp_path, data, *WORDS, f"model.word_vectors={tmp_path}/{name}")
        with pytest.raises(ConfigError) as error:
            check_folder(run, resume=False)
        assert message in str(error.value)
    pieces = tiny(tmp_path, data, f"model.word_vectors={glove(tmp_path)}", "tokenizer.kind=bpe")
    with pytest.raises(ConfigError, match=r"vectors of whole words, not of `tokenizer.kind: bpe`"):
        check_folder(pieces, resume=False)
    nothing = glove(tmp_path, ["nowhere"])
    run = tiny(tmp_path, data, *WORDS, f"model.word_vectors={nothing}")
    with pytest.raises(DataError) as failed:
        train(run, prepare(run), go_on)
    assert "none of its words is in the vocabulary" in str(failed.value)
    assert not storage.exists(f"{run.run_folder}/vectors.json")


def test_load_resolves_the_path_of_word_vectors(tmp_path: Path) -> None:
    run = run_config.load(None, ["model.word_vectors=v.txt", "tokenizer.kind=word"])
    assert run.model.word_vectors == str(Path.cwd() / "v.txt")
