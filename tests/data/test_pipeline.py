"""Functions over items in this process: order, prefetching, external sort."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers.ray_cpus import every_cpu_taken
from txclf.core.errors import ClusterError, DataError, StorageError
from txclf.core.hashing import mix
from txclf.data import pipeline


def two_tables(item: int) -> Iterator[pa.Table]:
    for start in (10 * item, 10 * item + 5):
        rows = np.arange(start, start + 5, dtype=np.uint64)
        yield pa.table({"key": mix(rows), "row": rows})


def test_tables_come_in_the_order_of_the_items() -> None:
    tables = list(pipeline.tables(two_tables, [2, 0, 1], on_ray=False))
    rows = [row for table in tables for row in table["row"].to_pylist()]
    assert rows == [*range(20, 30), *range(10), *range(10, 20)]


def test_prefetch_gives_the_same_items_in_order() -> None:
    assert list(pipeline.prefetch(iter(range(50)), depth=3)) == list(range(50))
    assert list(pipeline.prefetch(iter(()))) == []


def test_prefetch_produces_ahead_in_another_thread() -> None:
    threads = set()

    def items() -> Iterator[int]:
        for number in range(4):
            threads.add(threading.get_ident())
            produced.append(number)
            yield number

    produced: list[int] = []
    stream = pipeline.prefetch(items(), depth=2)
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(produced) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert produced == [0, 1, 2]
    assert threads.isdisjoint({threading.get_ident()})
    stream.close()  # type: ignore[attr-defined]


def test_prefetch_error_of_an_item_is_raised_at_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    stream = pipeline.prefetch(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(stream)


@pytest.mark.parametrize("num_partitions", [1, 3, 50, 500])
def test_external_sort_partitions_have_disjoint_key_ranges_in_order(num_partitions: int) -> None:
    written: list[list[int]] = []

    def write(table: pa.Table) -> str:
        written.append(sorted(table["key"].to_pylist()))
        return str(table.num_rows)

    counts = list(
        pipeline.external_sort(two_tables, range(20), on_ray=False, write=write, num_partitions=num_partitions)
    )
    assert [int(count) for count in counts] == [len(keys) for keys in written]
    assert 1 <= len(written) <= num_partitions
    assert [key for keys in written for key in keys] == sorted(mix(np.arange(200, dtype=np.uint64)).tolist())


def test_external_sort_thousands_of_partitions_keep_to_a_limit_of_256_open_files() -> None:
    program = """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        import numpy as np
        import pyarrow as pa
        from txclf.core.hashing import mix
        from txclf.data import pipeline

        ROWS, PARTITIONS = 20_000, 5_000
        pipeline.BUFFER_BYTES = 100_000  # several buffers per file

        def small_tables(item):
            for start in range(0, ROWS, 100):
                rows = np.arange(start, start + 100, dtype=np.uint64)
                yield pa.table({"key": mix(rows), "text": [f"row {row}" for row in rows]})

        written = []
        names = pipeline.external_sort(
            small_tables, [0], on_ray=False, write=lambda table: written.append(table) or "", num_partitions=PARTITIONS
        )
        assert len(list(names)) == len(written)
        keys = mix(np.arange(ROWS, dtype=np.uint64))
        partition = (keys / 2.0**64 * PARTITIONS).astype(np.int64)
        expected = [np.flatnonzero(partition == number) for number in np.unique(partition)]
        assert len(written) == len(expected) > 4_800
        for table, rows in zip(written, expected):
            assert table["key"].to_pylist() == keys[rows].tolist()
            assert table["text"].to_pylist() == [f"row {row}" for row in rows]
        print("sorted")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.stdout == "sorted\n", done.stderr


def test_external_sort_without_rows_writes_nothing() -> None:
    def no_tables(item: int) -> Iterator[pa.Table]:
        yield from ()

    assert list(pipeline.external_sort(no_tables, [1], on_ray=False, write=str, num_partitions=2)) == []


RAY = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@RAY
@pytest.mark.usefixtures("local_ray")
def test_tables_on_ray_hold_the_same_rows_in_the_order_of_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BLOCK_BYTES", 100)

    def function(item: int) -> Iterator[pa.Table]:
        for start in range(10 * item, 10 * item + 10, 5):
            yield pa.table({"row": [*range(start, start + 5)], "text": [None] * 5}, schema=schema)

    schema = pa.schema([("row", pa.uint64()), ("text", pa.string())])
    items = [2, 0, 1, 7, 3]
    there, here = (pa.concat_tables(pipeline.tables(function, items, on_ray=on_ray)) for on_ray in (True, False))
    assert there.equals(here)


def faulty(item: int) -> Iterator[pa.Table]:
    if item != 1:
        yield from two_tables(item)
    if item > 0:
        raise DataError("`a.csv`: row 2: no text")


@RAY
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("items", [[0, 1], [1, 0], [0, 2], [1]])
def test_tables_and_external_sort_on_ray_raise_the_error_of_a_task(
    items: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    def write(table: pa.Table) -> str:
        return str(table.num_rows)

    for run in (
        lambda: pipeline.tables(faulty, items, on_ray=True),
        lambda: pipeline.external_sort(faulty, items, on_ray=True, write=write, num_partitions=2),
    ):
        with pytest.raises(DataError) as raised:
            list(run())
        assert type(raised.value) is DataError
        assert str(raised.value) == "`a.csv`: row 2: no text"
    assert "Traceback" not in "".join(capfd.readouterr())


@RAY
@pytest.mark.usefixtures("local_ray")
def test_external_sort_on_ray_raises_the_error_of_a_write() -> None:
    def write(table: pa.Table) -> str:
        raise StorageError("`out`: cannot be written")

    with pytest.raises(StorageError, match=r"^`out`: cannot be written$"):
        list(pipeline.external_sort(two_tables, [1], on_ray=True, write=write, num_partitions=2))


@RAY
@pytest.mark.usefixtures("local_ray")
def test_tables_and_external_sort_on_ray_without_a_free_cpu_fail_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "NO_PROGRESS_TIMEOUT_S", 3.0)
    monkeypatch.setattr(pipeline, "SORT_NO_PROGRESS_TIMEOUT_S", 3.0)

    def function(item: int) -> Iterator[pa.Table]:
        yield pa.table({"key": pa.array([item], pa.uint64())})

    with every_cpu_taken():
        start = time.monotonic()
        for run in (
            lambda: pipeline.tables(function, [1, 2], on_ray=True),
            lambda: pipeline.external_sort(function, [1, 2], on_ray=True, write=str, num_partitions=1),
        ):
            with pytest.raises(ClusterError, match=r"made no progress on Ray for 3 s, and Ray has 0 of 3 CPUs free"):
                list(run())
        assert time.monotonic() - start < 30


def test_joined_yields_a_table_after_the_time_even_if_it_is_small() -> None:
    def slow() -> Iterator[pa.Table]:
        for number in range(4):
            time.sleep(0.06)
            yield pa.table({"number": [number]})

    assert [table.num_rows for table in pipeline._joined(slow(), 10**9)] == [4]
    assert [table.num_rows for table in pipeline._joined(slow(), 10**9, max_seconds=0.1)] == [2, 2]
    assert [table.num_rows for table in pipeline._joined(slow(), 1)] == [1, 1, 1, 1]
