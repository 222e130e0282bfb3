"""Distillation: the teacher's logits are stored once, and the student learns them next to the labels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

import txclf
from tests.helpers import multilabel
from tests.helpers.files import make_rows, write_csv
from tests.helpers.modules import DRAW, LISTS, make_run
from tests.helpers.runs import go_on, tiny, trained
from tests.helpers.teachers import finish, save_teacher, student
from txclf import Classifier, ConfigError
from txclf.core import storage
from txclf.data import shards
from txclf.data.batches import TokenRows
from txclf.data.sampler import micro_batches, rank_share
from txclf.training.data_module import ShardsDataModule
from txclf.training.module import ClassifierModule
from txclf.training.train import check_folder, train


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a csv file of 200 rows without labels."""
    rows = [[text] for text, _ in make_rows(200, seed=5)]
    return write_csv(tmp_path_factory.mktemp("unlabelled") / "more.csv", rows, header=["text"])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, data: str) -> str:
    """Return a teacher whose labels are in another order than those of the data."""
    folder = tmp_path_factory.mktemp("teacher")
    return save_teacher(folder / "model", tiny(folder, data), ["pos", "neg"])


def test_stored_logits_give_the_probabilities_of_the_teacher(
    tmp_path: Path, data: str, unlabelled: str, teacher: str
) -> None:
    run = student(tmp_path, data, teacher, f"data.unlabelled={unlabelled}")
    module = ShardsDataModule(run, txclf.prepare(run))
    table = module.reader.read(0)
    texts = shards.read_split(module.prepared, module.manifest, "train", ["text"])
    model = Classifier.load(teacher)
    expected = model.probabilities([(text,) for text in texts["text"].to_pylist()])
    stored = torch.from_numpy(TokenRows([table.sort_by("number")]).teacher_logits)
    order = [model.labels.index(label) for label in module.manifest.labels]
    assert order == [1, 0]
    np.testing.assert_allclose(torch.softmax(stored, 1).numpy(), expected[:, order], atol=1e-5)


def test_unlabelled_rows_are_trained_on_and_count_for_no_label(
    tmp_path: Path, data: str, unlabelled: str, teacher: str
) -> None:
    with_more = student(tmp_path, data, teacher, f"data.unlabelled={unlabelled}", "train.class_weights=balanced")
    without = student(tmp_path, data, teacher, "train.class_weights=balanced")
    one, two = (ShardsDataModule(run, txclf.prepare(run)) for run in (with_more, without))
    more, less = one.manifest.splits["train"], two.manifest.splits["train"]
    assert (more.rows - less.rows, more.labelled_rows) == (200, less.rows)
    assert more.label_counts == less.label_counts
    assert one.manifest.splits["unlabelled"].unlabelled_rows == 200
    assert one.manifest.splits["valid"].rows == two.manifest.splits["valid"].rows
    weights = [ClassifierModule.from_data(module).class_weights for module in (one, two)]
    torch.testing.assert_close(weights[0], weights[1])
    labels = one.reader.read(0)["label"].to_numpy()
    assert (labels == -1).sum() == 200


def test_altered_copies_of_training_rows_have_no_label(
    tmp_path: Path, data: str, teacher: str, unlabelled: str
) -> None:
    words = ["data.altered_copies=3", f"data.unlabelled={unlabelled}"]
    run = student(tmp_path, data, teacher, *words)
    module = ShardsDataModule(run, txclf.prepare(run))
    splits, alone = module.manifest.splits, shards.load_manifest(txclf.prepare(student(tmp_path, data, teacher)))
    rows = alone.splits["train"].rows
    assert (splits["train"].rows, splits["train"].labelled_rows) == (4 * rows + 200, rows)
    assert (splits["unlabelled"].rows, splits["unlabelled"].read) == (3 * rows + 200, 200)
    assert splits["valid"].label_counts == alone.splits["valid"].label_counts
    tables = {
        split: shards.read_split(module.prepared, module.manifest, split, ["text", "file", "row", "label"]).to_pylist()
        for split in ("valid", "unlabelled")
    }
    copies = [row for row in tables["unlabelled"] if row["file"] != unlabelled]
    assert {row["label"] for row in tables["unlabelled"]} == {-1}
    held_out = {(row["file"], row["row"]) for row in tables["valid"]}
    assert not held_out & {(row["file"], row["row"]) for row in copies}  # the student is measured on texts it never saw
    assert len({row["text"] for row in copies}) > rows
    assert finish(run)


def test_altered_copies_of_a_batch_without_usable_rows_are_none(tmp_path: Path, teacher: str) -> None:
    rows = [*(("", "pos") for _ in range(5000)), *make_rows(60)]
    words = ["data.altered_copies=2", "data.on_bad_row=skip"]
    run = student(tmp_path, write_csv(tmp_path / "train.csv", rows), teacher, *words)
    splits = shards.load_manifest(txclf.prepare(run)).splits
    assert splits["unlabelled"].rows == 2 * splits["train"].labelled_rows > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_altered_copies_are_the_same_on_ray(tmp_path: Path, data: str, teacher: str, local_ray: None) -> None:
    texts = []
    for workers in (0, 1):
        run = student(tmp_path / str(workers), data, teacher, "data.altered_copies=2", f"compute.workers={workers}")
        prepared = txclf.prepare(run)
        table = shards.read_split(prepared, shards.load_manifest(prepared), "unlabelled", ["text", "row", "input_ids"])
        texts.append(table.to_pylist())
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("world_size", "parts"), [(1, 1), (2, 3), (5, 1)])
@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 2.0), (0.7, 3.0), (1.0, 1.0)])
def test_training_step_blends_the_losses_of_labels_and_teacher(
    weight: float, temperature: float, world_size: int, parts: int
) -> None:
    size = 20
    run = make_run(
        f"train.batch_size={size}",
        f"train.micro_batches={parts}",
        f"distill.weight={weight}",
        f"distill.temperature={temperature}",
    )
    torch.manual_seed(0)
    class_weights = torch.tensor([0.5, 1.0, 3.0])
    module = ClassifierModule(run, vocab_size=50, num_classes=3, class_weights=class_weights, total_steps=9).eval()
    module.gradient_divisor = world_size * parts
    labels = DRAW.integers(-1, 3, 60)
    answers = DRAW.normal(size=(60, 3)).astype(np.float32)
    columns = {
        "input_ids": pa.array(LISTS, pa.list_(pa.int32())),
        "label": labels,
        "teacher_logits": pa.FixedSizeListArray.from_arrays(answers.reshape(-1), 3),
    }
    rows, numbers = TokenRows([pa.table(columns)]), np.arange(20, 20 + size)
    loss = sum(
        module.training_step({**rows.batch(part), "step_size": size}, 0) / parts / world_size
        for rank in range(world_size)
        for part in micro_batches(rank_share(numbers, rank, world_size), parts)
        if len(part)
    )
    whole = rows.batch(numbers)
    logits = module.model(whole["input_ids"], whole["mask"])
    p = torch.softmax(torch.from_numpy(answers[numbers]) / temperature, 1)
    taught = temperature**2 * (p * (p.log() - torch.log_softmax(logits / temperature, 1))).sum(1)
    targets = torch.from_numpy(labels[numbers])
    learned = F.cross_entropy(logits, targets, class_weights, reduction="none", ignore_index=-1)
    expected = torch.where(targets < 0, taught, weight * taught + (1 - weight) * learned).sum() / size
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = list(module.model.parameters())
    for one, two in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_weight_0_without_unlabelled_rows_trains_as_without_a_teacher(tmp_path: Path, data: str, teacher: str) -> None:
    taught = finish(student(tmp_path, data, teacher, "name=taught", "distill.weight=0"))
    alone = finish(tiny(tmp_path, data, "name=alone"))
    for name, value in alone.items():
        torch.testing.assert_close(taught[name], value)


def test_student_of_noisy_labels_agrees_with_its_teacher_more_than_one_without(tmp_path: Path) -> None:
    draw = random.Random(3)
    clean = [(f"{text} {'good' if label == 'pos' else 'bad'}", label) for text, label in make_rows(700)]
    noisy = [(text, draw.choice(["pos", "neg"]) if draw.random() < 0.7 else label) for text, label in clean[:300]]
    files = {
        "clean": write_csv(tmp_path / "clean.csv", clean[:300]),
        "noisy": write_csv(tmp_path / "noisy.csv", noisy),
        "more": write_csv(tmp_path / "more.csv", [[text] for text, _ in clean[300:500]], header=["text"]),
    }
    trained(tmp_path, files["clean"], "name=large", "train.epochs=5")
    folder = str(tmp_path / "large" / "model")
    settings = ["train.epochs=8", "train.learning_rate=1e-2"]
    finish(tiny(tmp_path, files["noisy"], "name=alone", *settings))
    txclf.distill(folder, tiny(tmp_path, files["noisy"], "name=taught", f"data.unlabelled={files['more']}", *settings))
    texts = [(text,) for text, _ in clean[500:]]
    teacher, alone, taught = (
        Classifier.load(str(tmp_path / name / "model")).probabilities(texts) for name in ("large", "alone", "taught")
    )
    agree = [float((other.argmax(1) == teacher.argmax(1)).mean()) for other in (alone, taught)]
    assert agree[1] > 0.95, agree
    assert agree[1] > agree[0] + 0.05, agree


def test_resume_refuses_another_temperature(tmp_path: Path, data: str, teacher: str) -> None:
    finish(student(tmp_path, data, teacher))
    with pytest.raises(ConfigError, match=r"differs in `distill\.temperature` \(.*, now 4"):
        check_folder(student(tmp_path, data, teacher, "distill.temperature=4"), resume=True)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["pos", "neg", "odd"], "other labels than the data: only the teacher has `odd`"),
        (["pos", "bad"], "only the teacher has `bad`; only the data has `neg`"),
    ],
)
def test_train_refuses_a_teacher_with_other_labels(tmp_path: Path, data: str, labels: list[str], message: str) -> None:
    run = tiny(tmp_path, data)
    folder = save_teacher(tmp_path / "teacher", run, labels)
    with pytest.raises(ConfigError, match=message):
        train(student(tmp_path, data, folder), txclf.prepare(run), go_on)
    assert not storage.exists(run.run_folder)


def test_train_refuses_a_teacher_of_another_task_or_of_other_columns(
    tmp_path: Path, data: str, teacher: str, tag_data: tuple[str, str]
) -> None:
    run = multilabel.tagging(tmp_path, tag_data, f"distill.teacher={teacher}")
    with pytest.raises(ConfigError, match="a model of `task: classify`, not `multilabel`"):
        train(run, txclf.prepare(run), go_on)
    path = write_csv(tmp_path / "pairs.csv", [(a, a, b) for a, b in make_rows(40)], ("text", "more", "label"))
    pairs = student(tmp_path, path, teacher, "data.text=[text,more]")
    with pytest.raises(ConfigError, match=r"reads 1 text column\(s\), and `data.text` names 2"):
        train(pairs, txclf.prepare(pairs), go_on)


def test_store_logits_of_two_columns_refuses_a_line_break(tmp_path: Path) -> None:
    rows = [(a, f"{a} two", b) for a, b in make_rows(40)]
    settings = ["data.text=[text,more]", "data.valid_fraction=0.2"]
    path = write_csv(tmp_path / "pairs.csv", rows, ("text", "more", "label"))
    run = tiny(tmp_path, path, *settings)
    folder = save_teacher(tmp_path / "teacher", run, ["neg", "pos"])
    taught = student(tmp_path, path, folder, *settings)
    table = ShardsDataModule(taught, txclf.prepare(taught)).reader.read(0)
    assert TokenRows([table]).teacher_logits is not None
    broken = write_csv(tmp_path / "broken.csv", [*rows, ("one\nline", "more", "pos")], ("text", "more", "label"))
    taught = student(tmp_path, broken, folder, *settings, "seed=3")
    with pytest.raises(ConfigError, match=r"broken.csv`: row 41 has a line break within a text column"):
        ShardsDataModule(taught, txclf.prepare(taught))


def test_multilabel_rows_without_a_label_are_not_unlabelled(tmp_path: Path, tag_data: tuple[str, str]) -> None:
    more = multilabel.write_lines(tmp_path / "more.jsonl", [{"text": f"drum {number}"} for number in range(50)])
    words = ["train.epochs=1", f"data.unlabelled={more}", "train.class_weights=balanced"]
    run = multilabel.tagging(tmp_path, tag_data, *words)
    folder = save_teacher(tmp_path / "teacher", run, sorted(multilabel.TOPICS))
    taught = multilabel.tagging(tmp_path, tag_data, *words, f"distill.teacher={folder}")
    module = ShardsDataModule(taught, txclf.prepare(taught))
    rows = TokenRows([module.reader.read(0)])
    batch: Any = rows.batch(np.arange(len(rows)))
    assert (~batch["labelled"]).sum() == 50
    assert rows.label_sets is not None
    without = rows.label_sets.lengths == 0
    assert without.sum() > 50
    assert batch["labelled"][torch.from_numpy(without)].any()
    assert finish(taught)


def test_unlabelled_rows_need_a_teacher(tmp_path: Path, data: str, unlabelled: str) -> None:
    run = tiny(tmp_path, data, f"data.unlabelled={unlabelled}")
    with pytest.raises(ConfigError, match=r"`data.unlabelled`: rows without labels need a teacher"):
        check_folder(run, resume=False)
    with pytest.raises(ConfigError, match=r"`train.sampling: balanced` needs a label in each row"):
        tiny(tmp_path, data, f"data.unlabelled={unlabelled}", "train.sampling=balanced", "distill.teacher=t")
