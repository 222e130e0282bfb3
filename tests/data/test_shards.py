"""Prepared shards: pinned hashes, splits by text, counts, detected damage."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from txclf.core import storage
from txclf.core.errors import DataError
from txclf.data import shards
from txclf.data.shards import LENGTH_EDGES, SCHEMA, Manifest, Shard, Split

TEXTS = shards.text_hashes((f"text number {number}",) for number in range(20_000))
SEEDS = [0, 1, 2**63 - 1]


# --------------------------------------------------------------------------------------------------------------- hashes
# These constants are what the rows of every prepared folder were split and ordered by: they must never change.


def test_text_hashes_are_pinned() -> None:
    rows = [("",), ("a",), ("a", "b"), ("naïve 🎉",), ("a\x1fb",)]
    assert [f"{value:016x}" for value in shards.text_hashes(rows).tolist()] == [
        "b4b2797457a0a6e4",
        "2f42665b399ef840",
        "10d4e09f664d4cf8",
        "f5a2042c9eb9d6c2",
        "10d4e09f664d4cf8",
    ]
    assert shards.text_hashes([]).shape == (0,)
    assert shards.text_hashes([("\ud800",)]).dtype == np.uint64


def test_text_hashes_are_blake2b() -> None:
    expected = hashlib.blake2b(b"a\x1fb", digest_size=8).digest()
    assert shards.text_hashes([("a", "b")]).astype("<u8").tobytes() == expected


@pytest.mark.parametrize(
    ("seed", "valid", "sampled"),
    [
        (0, [7, 8, 14, 23, 31, 33, 36, 45, 48, 49], [6, 23, 25, 33, 44, 47, 48]),
        (1, [6, 23, 25, 33, 44, 47, 48], [0, 4, 24, 33, 36, 39]),
    ],
)
def test_validation_rows_are_pinned(seed: int, valid: list[int], sampled: list[int]) -> None:
    hashes = shards.text_hashes((str(number),) for number in range(50))
    assert np.flatnonzero(shards.validation_rows(hashes, seed, 0.2)).tolist() == valid
    assert np.flatnonzero(shards.sampled_rows(hashes, seed, 0.2)).tolist() == sampled


@pytest.mark.parametrize(
    ("source", "start", "seed", "expected"),
    [
        (0, 0, 0, ["a0342a335f92515e", "05e819e46258fb55", "e600ab0879ce179c"]),
        (7, 100, 2**63 - 1, ["f4a2658466c218a3", "8d7ee27e79b29514", "1856c1bf3f2ac2de"]),
    ],
)
def test_shuffle_keys_are_pinned(source: int, start: int, seed: int, expected: list[str]) -> None:
    hashes = shards.text_hashes([("",), ("a",), ("a", "b")])
    keys = shards.shuffle_keys(hashes, source, np.arange(start, start + 3), seed)
    assert [f"{key:016x}" for key in keys.tolist()] == expected


# --------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("draw", [shards.validation_rows, shards.sampled_rows])
def test_validation_rows_share_is_near_the_fraction(draw: Any, fraction: float, seed: int) -> None:
    chosen = draw(TEXTS, seed, fraction)
    assert chosen.dtype == np.bool_
    spread = (fraction * (1 - fraction) / len(TEXTS)) ** 0.5
    assert abs(chosen.mean() - fraction) < 4 * spread


def test_validation_rows_larger_fraction_only_adds_rows() -> None:
    some, more = (shards.validation_rows(TEXTS, 0, fraction) for fraction in (0.1, 0.3))
    assert (some <= more).all()
    assert some.sum() < more.sum()


def test_validation_rows_depend_on_the_text_only() -> None:
    shuffled = np.random.default_rng(0).permutation(np.tile(np.arange(500), 3))
    chosen = shards.validation_rows(TEXTS[shuffled], 0, 0.3)
    once = shards.validation_rows(TEXTS[:500], 0, 0.3)
    assert (chosen == once[shuffled]).all()


@pytest.mark.parametrize("draw", [shards.validation_rows, shards.sampled_rows])
def test_validation_rows_of_seeds_are_independent(draw: Any) -> None:
    one, two = (draw(TEXTS, seed, 0.5) for seed in (0, 1))
    assert abs((one == two).mean() - 0.5) < 0.02


def test_sampled_rows_are_independent_of_validation_rows() -> None:
    valid, sampled = shards.validation_rows(TEXTS, 0, 0.5), shards.sampled_rows(TEXTS, 0, 0.5)
    assert abs(sampled[valid].mean() - 0.5) < 0.02


# -------------------------------------------------------------------------------------------------------------- shuffle


def keys_of(case: str, seed: int) -> np.ndarray:
    positions = np.arange(len(TEXTS))
    hashes = np.full_like(TEXTS, TEXTS[0]) if case == "one text" else TEXTS
    return shards.shuffle_keys(hashes, 3, positions, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", ["many texts", "one text"])
def test_shuffle_keys_are_even(case: str, seed: int) -> None:
    keys = keys_of(case, seed)
    assert len(np.unique(keys)) == len(keys)
    counts = np.bincount((keys >> np.uint64(60)).astype(int), minlength=16)
    assert counts.min() > 1250 - 5 * 1250**0.5
    assert counts.max() < 1250 + 5 * 1250**0.5
    order = np.argsort(keys)
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.04
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.04


def test_shuffle_keys_depend_on_row_file_and_seed() -> None:
    hashes, positions = TEXTS[:100], np.arange(100)
    base = shards.shuffle_keys(hashes, 0, positions, 0)
    for keys in (
        shards.shuffle_keys(hashes, 1, positions, 0),
        shards.shuffle_keys(hashes, 0, positions + 100, 0),
        shards.shuffle_keys(hashes, 0, positions, 1),
        shards.shuffle_keys(TEXTS[100:200], 0, positions, 0),
    ):
        assert not set(base.tolist()) & set(keys.tolist())


# --------------------------------------------------------------------------------------------------------------- shards


def make_table(rows: int, seed: int = 0) -> pa.Table:
    draw = np.random.default_rng(seed)
    full = draw.integers(0, 40, rows)
    ids = [draw.integers(0, 1000, max(1, min(length, 16))).tolist() for length in full.tolist()]
    columns = [ids, draw.integers(0, 3, rows), [f"té {row}" for row in range(rows)], ["a.csv"] * rows]
    columns += [np.arange(1, rows + 1), full, shards.shuffle_keys(TEXTS[:rows], 0, np.arange(rows), seed)]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def make_manifest(parts: list[Shard], **changes: Any) -> Manifest:
    sums = {name: sum(getattr(part, name) for part in parts) for name in ("rows", "tokens", "truncated_rows")}
    split = Split(
        shards=parts,
        read=sums["rows"],
        rejected=0,
        truncated_token_share=0.0,
        label_counts={"a": sums["rows"]},
        length_histogram=[],
        duplicates=0,
        duplicates_of_train=0,
        **sums,
    )
    settings: dict[str, Any] = {
        "fingerprint": "f",
        "labels": ["a", "b", "c"],
        "tokenizer_hash": "t",
        "vocab_size": 1000,
        "max_length": 16,
        "length_edges": list(LENGTH_EDGES),
        "splits": {"train": split},
        "reject_reasons": {},
        "conflicting_texts": 0,
    }
    return Manifest(**settings | changes)


def test_write_shard_rows_are_read_in_key_order(tmp_path: Path) -> None:
    tables = [make_table(200, seed) for seed in (0, 1)]
    parts = [shards.write_shard(str(tmp_path), "train", table, 3) for table in tables]
    table = shards.read_split(str(tmp_path), make_manifest(parts), "train", SCHEMA.names)
    assert table.schema == SCHEMA
    halves = [table.slice(0, 200), table.slice(200)]
    assert [half.sort_by("row").to_pylist() for half in halves] == [part.to_pylist() for part in tables]
    for half in halves:
        keys = half["key"].to_pylist()
        assert keys == sorted(keys)
    assert [Path(part.file).name for part in parts] == [
        f"part-{min(t['key'].to_pylist()):016x}.parquet" for t in tables
    ]


def test_write_shard_equal_keys_are_ordered_by_file_and_row(tmp_path: Path) -> None:
    table = make_table(6)
    places = [("b", 1), ("a", 10), ("a", 9), ("b", 0), ("a", 2), ("c", 1)]
    table = table.set_column(6, "key", pa.array([7] * 6, pa.uint64()))
    table = table.set_column(3, "file", pa.array([file for file, _ in places]))
    table = table.set_column(4, "row", pa.array([row for _, row in places]))
    shard = shards.write_shard(str(tmp_path), "valid", table, 3)
    rows = shards.read_shard(str(tmp_path), shard, ["file", "row"]).to_pylist()
    assert [(row["file"], row["row"]) for row in rows] == sorted(places)
    assert shard.file == "valid/part-0000000000000007.parquet"


def test_read_split_reads_only_the_given_columns(tmp_path: Path) -> None:
    shard = shards.write_shard(str(tmp_path), "train", make_table(5), 3)
    assert shards.read_shard(str(tmp_path), shard, ("label", "input_ids")).column_names == ["label", "input_ids"]


def test_write_shard_counts_are_right(tmp_path: Path) -> None:
    table = make_table(300)
    shard = shards.write_shard(str(tmp_path), "train", table, num_labels=5)
    lengths = [len(ids) for ids in table["input_ids"].to_pylist()]
    full, labels = table["full_length"].to_pylist(), table["label"].to_pylist()
    assert shard.rows == 300 == sum(shard.length_histogram) == sum(shard.label_counts)
    assert shard.tokens == sum(lengths)
    assert shard.full_tokens == sum(map(max, full, lengths))
    assert shard.truncated_rows == sum(length > 16 for length in full) > 0
    assert shard.label_counts == [labels.count(label) for label in range(5)]
    ends = [*LENGTH_EDGES[1:], 2**62]
    starts = [0, *LENGTH_EDGES[1:]]
    assert shard.length_histogram == [
        sum(start <= length < end for length in full) for start, end in zip(starts, ends, strict=True)
    ]


def test_write_shard_longest_text_has_a_bin(tmp_path: Path) -> None:
    table = make_table(4).set_column(5, "full_length", pa.array([0, 1, 2, 10**9], pa.int64()))
    histogram = shards.write_shard(str(tmp_path), "train", table, 3).length_histogram
    assert (histogram[0], histogram[1], histogram[-1], sum(histogram)) == (2, 1, 1, 4)
    assert len(histogram) == len(LENGTH_EDGES)


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.fixture
def written(tmp_path: Path) -> tuple[str, Shard, Path]:
    shard = shards.write_shard(str(tmp_path), "train", make_table(300), 3)
    return str(tmp_path), shard, tmp_path / shard.file


def test_read_shard_missing_file_is_refused(written: tuple[str, Shard, Path]) -> None:
    folder, shard, path = written
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}`: the shard cannot be read: .* Remove `{folder}`"):
        shards.read_split(folder, make_manifest([shard]), "train", ["label"])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_read_shard_truncated_file_is_refused(written: tuple[str, Shard, Path], share: float) -> None:
    folder, shard, path = written
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=f"{path.name}`: the shard cannot be read: "):
        shards.read_shard(folder, shard, ["label"])


def test_read_shard_flipped_bit_is_detected(written: tuple[str, Shard, Path]) -> None:
    folder, shard, path = written
    content = path.read_bytes()
    whole = shards.read_shard(folder, shard, ["input_ids", "label"])
    told: list[str] = []
    for place in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert shards.read_shard(folder, shard, ["input_ids", "label"]).equals(whole)
        except DataError as error:
            told.append(str(error))
    assert len(told) > 1000
    assert all(path.name in message for message in told)


def test_read_shard_with_other_rows_is_refused(written: tuple[str, Shard, Path]) -> None:
    folder, shard, path = written
    pq.write_table(make_table(7), path)
    with pytest.raises(DataError, match="7 rows in 1 row groups, the manifest says 300 in 1"):
        shards.read_shard(folder, shard, ["label"])


# ------------------------------------------------------------------------------------------------------------- manifest


def test_load_manifest_returns_what_was_written(tmp_path: Path) -> None:
    shard = shards.write_shard(str(tmp_path), "train", make_table(5), 3)
    (tmp_path / shards.TOKENIZER).write_text("one")
    manifest = make_manifest([shard], tokenizer_hash=hashlib.sha256(b"one").hexdigest())
    storage.write_bytes(tmp_path / shards.MANIFEST, manifest.model_dump_json().encode())
    assert shards.load_manifest(str(tmp_path)) == manifest
    (tmp_path / shards.TOKENIZER).write_text("two")
    with pytest.raises(DataError, match=r"tokenizer\.json`: not the tokenizer that the shards were made with"):
        shards.load_manifest(str(tmp_path))


def test_load_manifest_folder_without_one_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(
            DataError,
            match=f"`{folder}`: no manifest.json, so this is no folder of prepared data or preparing was interrupted",
        ):
            shards.load_manifest(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1, "rows": 3}', "more", "less"])
def test_load_manifest_foreign_one_is_refused(tmp_path: Path, content: str) -> None:
    ours = make_manifest([]).model_dump()
    changed = {"more": ours | {"new": 1}, "less": {name: value for name, value in ours.items() if name != "labels"}}
    if content in changed:
        storage.write_json(tmp_path / shards.MANIFEST, changed[content])
    else:
        (tmp_path / shards.MANIFEST).write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json`: not a manifest of this version\. Run `txclf prepare` again"):
        shards.load_manifest(str(tmp_path))


def test_first_rows_reads_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "GROUP_ROWS", 4)
    shard = shards.write_shard(str(tmp_path), "train", make_table(10), 3)
    manifest = make_manifest([shard])
    whole = shards.read_split(str(tmp_path), manifest, "train", ["text"])["text"].to_pylist()
    for most in (1, 4, 6, 100):
        tables = list(shards.first_rows(str(tmp_path), manifest, "train", ["text"], most))
        assert [text for table in tables for text in table["text"].to_pylist()] == whole[:most]
        assert len(tables) == -(-min(most, 10) // 4)


def test_held_out_rows_are_disjoint_and_independent_draws() -> None:
    hashes = shards.text_hashes((f"text {number}",) for number in range(20_000))
    for seed in range(6):
        masks = shards.held_out_rows(hashes, seed, valid_fraction=0.2, test_fraction=0.2)
        assert not (masks["valid"] & masks["test"]).any()
        assert abs(masks["test"].mean() - 0.2) < 0.02
        assert abs(masks["valid"].sum() / (~masks["test"]).sum() - 0.2) < 0.02
    none = shards.held_out_rows(hashes, 0, valid_fraction=0.0, test_fraction=0.0)
    assert not none["valid"].any()
    assert not none["test"].any()
