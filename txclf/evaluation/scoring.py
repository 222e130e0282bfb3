"""Scores of rows in chunks: one row group of the test split, or one batch of rows of a labelled file.

    chunks ──one model per process──▶ parts: logits or texts of a chunk, and its answers ──▶ the metrics

A chunk is the unit of reading and of memory. The chunks are the same in this process and on Ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from txclf.config.run_config import RunConfig
from txclf.config.sections import Compute
from txclf.core import openmp
from txclf.data import shards
from txclf.data.batches import PairRows
from txclf.data.records import Reject
from txclf.data.shards import Shard
from txclf.data.sources import Source
from txclf.evaluation import labelled_files
from txclf.evaluation.labelled_files import Answers
from txclf.inference import bundle
from txclf.inference.classifier import Classifier
from txclf.inference.seq2seq import Seq2Seq, TeacherForced

Floats = npt.NDArray[np.float32]


class Chunk(NamedTuple):
    """Rows to score."""

    source: int
    """Number of the shard or file, from 0."""
    number: int
    """Number of the chunk in its source, from 0; the row group of a shard."""
    content: Answers | None
    """Rows of a file; None for a row group, which is read where it is scored."""


class Part(NamedTuple):
    """Scored rows of one chunk."""

    source: int
    number: int
    answers: pa.Table
    """Column of the answers, and `text` if the plan has `with_text`."""
    logits: Floats
    """Logits (rows, classes); (0, 0) for `seq2seq`."""
    outputs: list[str]
    """Generated texts; empty unless `seq2seq`."""
    forced: TeacherForced | None
    """Scores of the target tokens of `seq2seq`."""
    seconds: float
    """Seconds of generation."""
    rejects: list[Reject]
    """Bad rows of the chunk. If the run does not skip bad rows, the others are not scored then."""


@dataclass(frozen=True, kw_only=True)
class ScoringPlan:
    """Everything that a process needs to score chunks."""

    run: RunConfig
    model: str
    """Folder of the bundle."""
    prepared: str
    """Folder of the prepared data."""
    sources: Sequence[Shard] | Sequence[Source]
    """Shards of the test split, or labelled files."""
    with_text: bool
    """True to return the texts, which the baselines read."""

    @property
    def max_chunks(self) -> int | float:
        """Number of chunks; infinite for labelled files, which are read to find out."""
        shard_groups = [len(source.group_tokens) for source in self.sources if isinstance(source, Shard)]
        return sum(shard_groups) if shard_groups else math.inf

    def chunks(self, number: int) -> Iterator[Chunk]:
        """Yield the chunks of a source."""
        source = self.sources[number]
        if isinstance(source, Shard):
            yield from (Chunk(number, group, None) for group in range(len(source.group_tokens)))
            return
        spec = self.run.task_spec
        known = None if spec.is_seq2seq else set(bundle.read_metadata(self.model).labels)
        for chunk, content in enumerate(labelled_files.read_answers(self.run, source, known)):
            yield Chunk(number, chunk, content)

    def scorer(self) -> Callable[[Chunk], Part]:
        """Load the model and return the function that scores a chunk with it."""
        if self.run.task_spec.is_seq2seq:
            model = Seq2Seq.load(self.model)
            return lambda chunk: self._pairs(model, chunk)
        classifier = Classifier.load(self.model)
        return lambda chunk: self._labelled(classifier, chunk)

    def _labelled(self, classifier: Classifier, chunk: Chunk) -> Part:
        spec = self.run.task_spec
        answers = [spec.shard_column, *(["text"] if self.with_text else [])]
        if self._is_refused(chunk):
            return _part(chunk, pa.table({name: [] for name in answers}), np.empty((0, 0), np.float32))
        if chunk.content is None:
            needed = [*answers, *(["text"] if classifier.blend and "text" not in answers else [])]
            table = self._row_group(chunk, ["input_ids", *needed])
        else:
            table = labelled_files.label_table(self.run, classifier, chunk.content)
        return _part(chunk, table.select(answers), classifier.logits(classifier.rows([table])))

    def _pairs(self, model: Seq2Seq, chunk: Chunk) -> Part:
        if self._is_refused(chunk):
            return _part(chunk, pa.table({"target": pa.array([], pa.string())}), np.empty((0, 0), np.float32))
        if chunk.content is None:
            table = self._row_group(chunk, ["input_ids", "target_ids", "target"])
        else:
            table = labelled_files.target_table(model, chunk.content)
        start = time.monotonic()
        outputs = model.generate(model.rows([table]))
        seconds = time.monotonic() - start
        forced = model.teacher_forced_sums(PairRows.from_tables([table]))
        part = _part(chunk, table.select(["target"]), np.empty((0, 0), np.float32))
        return part._replace(outputs=outputs, forced=forced, seconds=seconds)

    def _is_refused(self, chunk: Chunk) -> bool:
        """Return True if a chunk has no row to score, or the run does not skip its bad rows."""
        content = chunk.content
        return content is not None and (
            not content.texts or (bool(content.rejects) and self.run.data.on_bad_row == "fail")
        )

    def _row_group(self, chunk: Chunk, columns: Sequence[str]) -> pa.Table:
        shard = self.sources[chunk.source]
        assert isinstance(shard, Shard)
        (table,) = shards.read_groups(self.prepared, shard, columns, [chunk.number])
        return table


def _part(chunk: Chunk, answers: pa.Table, logits: Floats) -> Part:
    rejects = chunk.content.rejects if chunk.content else []
    return Part(chunk.source, chunk.number, answers, logits, [], None, 0.0, rejects)


def score_here(plan: ScoringPlan) -> Iterator[Part]:
    """Score all chunks in this process."""
    score = plan.scorer()
    with openmp.spinning_on_free_cpus():
        for number in range(len(plan.sources)):
            for chunk in plan.chunks(number):
                yield score(chunk)


def score_on_ray(plan: ScoringPlan, compute: Compute) -> Iterator[Part]:
    """Score all chunks on the Ray that this process is connected to, and yield the parts in any order.

    Raises `ClusterError` and the `TxclfError` of a chunk as `actor_pool.answers` does.
    """
    from txclf import ray_cluster
    from txclf.data import actor_pool

    return actor_pool.answers(
        plan.chunks,
        plan.scorer,
        compute,
        num_sources=len(plan.sources),
        num_readers=ray_cluster.num_readers(),
        max_chunks=plan.max_chunks,
        work="the evaluation",
        advice="Run the command again.",
    )


class ScoredRows(NamedTuple):
    """All scored rows, in their order."""

    answers: pa.Table
    logits: Floats
    outputs: list[str]
    forced: TeacherForced
    seconds: float
    rejects: list[Reject]


def joined(parts: Iterable[Part]) -> ScoredRows:
    """Return parts, in any order, as one. Memory: 4 bytes per row and class, twice while they are joined."""
    ordered = sorted(parts, key=lambda part: (part.source, part.number))
    scored = [part for part in ordered if part.answers.num_rows] or ordered[:1]
    sums: list[Any] = [part.forced for part in scored if part.forced is not None]
    return ScoredRows(
        pa.concat_tables([part.answers for part in scored]),
        np.concatenate([part.logits for part in scored]),
        [output for part in scored for output in part.outputs],
        TeacherForced(*(sum(values) for values in zip(*sums, strict=True))) if sums else TeacherForced(),
        sum(part.seconds for part in scored),
        [reject for part in ordered for reject in part.rejects],
    )
