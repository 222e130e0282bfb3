"""`task: seq2seq` the whole way: files in, a model that makes text, the same on any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers.lengths import padding_share
from tests.helpers.pairs import pairs
from tests.helpers.runs import go_on, lines, prepare_here, stopped_at
from txclf import Classifier, Seq2Seq
from txclf.config.run_config import RunConfig
from txclf.config.sections import Tokenizer
from txclf.core import storage
from txclf.core.errors import BundleError, ConfigError
from txclf.data import shards
from txclf.data.batches import PairRows
from txclf.data.sampler import window_batches
from txclf.data.tokenizer import decode, encode_targets, target_ends, train_tokenizer
from txclf.data.word_cache import WordCache
from txclf.evaluation import evaluate
from txclf.prediction.predict import predict
from txclf.training.progress import Interrupted, Progress
from txclf.training.train import train


@pytest.fixture(scope="module")
def data(pair_data: str) -> str:
    return pair_data


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: str) -> RunConfig:
    run = pairs(tmp_path_factory.mktemp("trained"), data)
    summary = train(run, prepare_here(run), go_on)
    assert summary.best["valid_exact_match"] > 0.9
    return run


def test_evaluate_scores_the_outputs(trained: RunConfig) -> None:
    model = Seq2Seq.load(f"{trained.run_folder}/model")
    assert model(["small red", "old blue green"]) == ["RED SMALL", "GREEN BLUE OLD"]
    found = evaluate.evaluate(trained.run_folder)
    assert found["exact_match"] > 0.9
    assert found["bleu"] > 90
    assert found["chrf"] > 90
    assert found["token_accuracy"] > 0.95
    assert found["perplexity"] < 1.5
    again = evaluate.evaluate(trained.run_folder, list(trained.data.test or ()))
    assert {key: again[key] for key in ("bleu", "exact_match", "rows")} == {
        key: found[key] for key in ("bleu", "exact_match", "rows")
    }
    assert again["loss"] == pytest.approx(found["loss"])
    with pytest.raises(BundleError, match=r"a model of `task: seq2seq`\. Load it with `Seq2Seq"):
        Classifier.load(f"{trained.run_folder}/model")


def test_predict_adds_outputs_to_files(trained: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("source,output\nsmall red,mine\n,gap\n")
    done = predict(f"{trained.run_folder}/model", [str(tmp_path / "in.csv")], out=str(tmp_path / "out.csv"))
    assert (done.rows, done.bad, done.columns) == (2, 1, ["predicted_output"])
    expected = 'source,output,predicted_output\nsmall red,mine,RED SMALL\n"",gap,\n'
    assert (tmp_path / "out.csv").read_text() == expected
    with pytest.raises(ConfigError, match="has no labels"):
        predict(
            f"{trained.run_folder}/model", [str(tmp_path / "in.csv")], out=str(tmp_path / "o.csv"), probabilities=True
        )


def test_train_stopped_and_resumed_gives_the_same_losses(trained: RunConfig, tmp_path: Path, data: str) -> None:
    run = pairs(tmp_path, data, "train.checkpoint_every=7", "train.epochs=4", "model.dropout=0.1")
    whole = pairs(tmp_path, data, "name=whole", "train.checkpoint_every=7", "train.epochs=4", "model.dropout=0.1")
    folder = prepare_here(run)
    train(whole, folder, go_on)

    def stop(progress: Progress) -> bool:
        return progress.step >= 20

    with pytest.raises(Interrupted):
        train(run, folder, stop)
    train(run, folder, go_on)
    assert losses(run) == losses(whole)


def losses(run: RunConfig) -> list[tuple[Any, ...]]:
    return [(line["step"], line.get("train_loss"), line.get("valid_loss")) for line in lines(run)]


def test_train_resumed_in_a_shuffle_window_gives_the_same_losses(tmp_path: Path, data: str) -> None:
    words = ["data.shuffle_window=1000", "train.epochs=2", "model.dropout=0.1", "train.token_dropout=0.1"]
    whole, halted = (pairs(tmp_path, data, f"name={name}", *words) for name in ("whole", "halted"))
    train(whole, prepare_here(whole), go_on)
    stopped_at(halted, 7)
    train(halted, prepare_here(halted), go_on)
    assert losses(halted) == losses(whole)


def test_average_checkpoints_bundles_the_mean_if_it_is_as_good(tmp_path: Path, data: str) -> None:
    words = ["train.average_checkpoints=3", "train.eval_every=0.25", "train.epochs=6", "train.schedule=constant"]
    run = pairs(tmp_path, data, *words, "train.monitor=valid_loss", "model.dropout=0.2")
    summary = train(run, prepare_here(run), go_on)
    assert len(summary.averaged) == 3
    best = min(line["valid_loss"] for line in lines(run) if "valid_loss" in line)
    assert summary.best["valid_loss"] <= best
    manifest = shards.load_manifest(summary.prepared)
    rows = PairRows.from_tables([shards.read_split(summary.prepared, manifest, "valid", ["input_ids", "target_ids"])])
    again = Seq2Seq.load(f"{run.run_folder}/model").teacher_forced(rows)
    assert again["loss"] == pytest.approx(summary.best["valid_loss"])
    assert again["teacher_forced_match"] == summary.best["valid_exact_match"]


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("local_ray")
def test_fsdp_takes_the_same_steps(tmp_path: Path, data: str) -> None:
    found = []
    for words in (["name=whole"], ["name=sharded", "compute.workers=2", "compute.strategy=fsdp"]):
        run = pairs(tmp_path, data, *words, "train.epochs=1", "train.learning_rate=1e-3", "model.num_decoder_layers=2")
        summary = train(run, prepare_here(run), go_on)
        found.append([value or 0.0 for line in losses(run) for value in line])
        assert summary.steps == len(lines(run)) - 1
    assert found[0] == pytest.approx(found[1], rel=2e-3)
    assert Seq2Seq.load(f"{run.run_folder}/model").settings.num_beams == 2


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("local_ray")
def test_train_two_workers_take_the_steps_of_one(tmp_path: Path, data: str) -> None:
    found = {}
    for workers in (0, 2):
        run = pairs(
            tmp_path,
            data,
            f"name=on-{workers}",
            f"compute.workers={workers}",
            "train.epochs=1",
            "train.learning_rate=1e-3",
        )
        train(run, prepare_here(run), go_on)
        found[workers] = losses(run)
    assert [step for step, *_ in found[0]] == [step for step, *_ in found[2]]
    for one, two in zip(found[0], found[2], strict=True):
        assert [value or 0.0 for value in one] == pytest.approx([value or 0.0 for value in two], rel=1e-4)
    assert storage.exists(f"{tmp_path}/on-2/model/model.json")


def test_loss_is_the_mean_over_target_tokens(trained: RunConfig) -> None:
    """Check the scale of the first loss, which is about log(vocabulary) per token, whatever the row lengths."""
    folder = storage.read_json(f"{trained.run_folder}/summary.json")["prepared"]
    manifest = shards.load_manifest(folder)
    rows = PairRows.from_tables([shards.read_split(folder, manifest, "train", ["input_ids", "target_ids"])])
    assert manifest.labels == []
    assert manifest.splits["train"].target_tokens == rows.target.lengths.sum()
    assert rows.step_size(np.array([0, 5])) == rows.target.lengths[[0, 5]].sum() - 2
    first = lines(trained)[0]["train_loss"]
    assert 0.6 * np.log(manifest.target_vocab_size) < first < 2 * np.log(manifest.target_vocab_size)


def test_buckets_sort_by_both_sides() -> None:
    draw = np.random.default_rng(0)
    sides = [pa.array([[1] * n for n in draw.integers(2, 60, 4000)], pa.list_(pa.int32())) for _ in range(2)]
    rows = PairRows.from_tables([pa.table(sides, names=["input_ids", "target_ids"])])
    plan = window_batches(rows.lengths, 32, bucket_batches=50, seed=0, epoch=0)
    by_source_alone = window_batches(rows.source.lengths, 32, bucket_batches=50, seed=0, epoch=0)
    unsorted = window_batches(rows.lengths, 32, bucket_batches=1, seed=0, epoch=0)
    source, target = rows.source.lengths, rows.target.lengths
    both = [padding_share(source, order) + padding_share(target, order) for order in (plan, unsorted)]
    assert both[0] < both[1] - 0.2
    assert padding_share(target, plan) < 0.1 < padding_share(target, by_source_alone)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "word"])
def test_decode_joins_target_tokens(kind: str) -> None:
    texts = ["Zwei junge Männer sind draußen", "ein Hund läuft"] * 3
    settings = Tokenizer.model_validate({"kind": kind, "vocab_size": 400, "min_frequency": 1, "lowercase": False})
    tokenizer = train_tokenizer(settings, texts, for_targets=True)
    begin, end = target_ends(tokenizer)
    ids, full = encode_targets(WordCache(tokenizer), texts[:2], 1000)
    assert all(
        one[0] == begin and one[-1] == end and begin not in one[1:] and end not in one[:-1] for one in ids.to_pylist()
    )
    assert [len(one) - 2 for one in ids.to_pylist()] == full.tolist()
    assert decode(tokenizer, ids.to_pylist()) == texts[:2]
    cut, _ = encode_targets(WordCache(tokenizer), texts[:2], 2)
    assert [len(one) for one in cut.to_pylist()] == [3, 3]
    assert all(one[-1] != end for one in cut.to_pylist())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.monitor=valid_accuracy"], "`train.monitor: valid_accuracy` is not a metric of `task: seq2seq`"),
        (["train.adversarial=1"], "`train.adversarial: 1.0` is not supported with `task: seq2seq`"),
        (["train.class_weights=balanced"], "`train.class_weights: balanced` is not supported with"),
        (["task=classify"], "`train.monitor: valid_exact_match` is not a metric of `task: classify`"),
    ],
)
def test_load_unsupported_settings_raises(tmp_path: Path, data: str, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pairs(tmp_path, data, *words)
