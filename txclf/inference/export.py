"""`txclf export`: a bundle's model for other runtimes: ONNX, a `torch.export` program, and ONNX with 8-bit weights.

Every file is run on real rows beside the bundle, and kept only where it answers alike. `export.json`, written last,
tells what each file takes and gives, and how far it was from the bundle.

    model.onnx, model.pt2, model.int8.onnx               a classifier
    encoder.onnx, decoder.onnx and so on                 a `seq2seq` model: the source once, then token by token
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel
from torch import Tensor

from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.data import records, shards, sources
from txclf.data.batches import TokenRows, padded
from txclf.data.sampler import scoring_batches
from txclf.data.tokenizer import target_ends
from txclf.inference import bundle
from txclf.inference.classifier import Classifier
from txclf.inference.export_graphs import Graph, graphs
from txclf.inference.seq2seq import Seq2Seq
from txclf.model.classifier import by_row

Format = Literal["onnx", "torch", "int8"]
FORMATS: tuple[Format, ...] = ("onnx", "torch", "int8")
ENDINGS = {"onnx": "onnx", "torch": "pt2", "int8": "int8.onnx"}
OPSET = 20
"""Of ONNX."""
TOLERANCE = 1e-3
"""Largest difference in a logit that a file in full precision may have."""
RECORD = "export.json"
BATCH = 32

Model = Classifier | Seq2Seq
Runner = Callable[..., Sequence[Tensor]]
"""Runs a graph: its inputs in their order in, its outputs out."""


class Exported(BaseModel):
    """One format, tried on rows beside the bundle."""

    format: Format
    files: list[str]
    kept: bool
    bytes: int
    rows: int
    largest_difference: float
    """In a logit."""
    agreement: float
    """Share of the answers that are the bundle's: rows by their labels, tokens of `seq2seq` by the likeliest next."""
    rows_per_second: float
    bundle_rows_per_second: float
    """Of the bundle, on the same rows in the same minutes and on as many threads."""


def export(
    folder: str,
    out: str | None = None,
    formats: Sequence[Format] = FORMATS,
    data: Sequence[str] | None = None,
    rows: int = 1000,
    min_agreement: float = 0.98,
) -> list[Exported]:
    """Writes a bundle in other formats to `out` (by default its folder `export`), each if it stands the test.

    The rows it is tested on are those of `data`, else the validation rows of the run that the bundle lies in. A file in
    full precision must give the same answer to each; one with 8-bit weights to `min_agreement` of them.

    Raises `ConfigError` when there are no rows or the packages are missing, `BundleError` for what is no bundle.
    """
    _require(formats)
    description = bundle.read_metadata(folder)
    model: Model = Seq2Seq.load(folder) if description.task == "seq2seq" else Classifier.load(folder)
    model.model.cpu()
    model.device = torch.device("cpu")
    sample = _rows(model, folder, data, rows)
    out = out or storage.join(folder, "export")
    storage.require_writable(out)
    storage.remove_file(storage.join(out, RECORD))  # an earlier export's
    parts = graphs(model)
    done = []
    with _quiet():
        programs = [_program(part) for part in parts]
        for kind in formats:
            contents = [_content(kind, part, program) for part, program in zip(parts, programs, strict=True)]
            runners = [_runner(kind, part, content) for part, content in zip(parts, contents, strict=True)]
            found = _compare(model, parts, runners, sample)
            exact = found["agreement"] == 1.0 and found["largest_difference"] <= TOLERANCE
            kept = found["agreement"] >= min_agreement if kind == "int8" else exact
            names = [f"{part.name}.{ENDINGS[kind]}" for part in parts]
            for name, content in zip(names, contents, strict=True):
                if kept:
                    storage.write_bytes(storage.join(out, name), content)
                else:
                    storage.remove_file(storage.join(out, name))
            size = sum(map(len, contents))
            done.append(Exported(format=kind, files=names, kept=kept, bytes=size, rows=len(sample), **found))
    for name in (bundle.TOKENIZER, bundle.TARGET_TOKENIZER):
        if name in description.sha256:
            storage.write_bytes(storage.join(out, name), storage.read_bytes(storage.join(folder, name)))
    record = {
        "task": description.task,
        "labels": description.labels,
        "max_length": description.max_length,
        "truncation": description.truncation.model_dump(),
        "temperature": description.calibration.temperature if description.calibration else 1.0,
        "thresholds": description.thresholds,
        "opset": OPSET,
        "graphs": {part.name: {"inputs": list(part.inputs), "outputs": part.outputs} for part in parts},
        "formats": [one.model_dump() for one in done],
    }
    storage.write_json(storage.join(out, RECORD), record)
    return done


def known(name: str) -> list[Format]:
    """The format of that name. Raises `ConfigError` for another."""
    found = [kind for kind in FORMATS if kind == name]
    if not found:
        raise ConfigError(f"--format {name}: expected one of {', '.join(FORMATS)}")
    return found


def _require(formats: Sequence[Format]) -> None:
    missing = [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing and set(formats) != {"torch"}:
        raise ConfigError(f"ONNX needs the package `{missing[0]}`: pip install 'txclf[export]'")


def _rows(model: Model, folder: str, data: Sequence[str] | None, count: int) -> TokenRows:
    """Real rows to test with: of files, or the first validation rows of the run around the bundle."""
    if data is not None:
        columns = tuple(model.description.text_columns)
        batches = (
            batch for source in sources.find_sources(data) for batch, _ in records.read_rows(source, columns, None)
        )
        texts = list(islice((text for batch in batches for text in batch.texts), count))
        if not texts:
            raise DataError(f"no usable row in {', '.join(data)}")
        return model.rows([pa.table({"input_ids": model.encode(texts)})])
    run = os.path.dirname(storage.absolute(folder).rstrip("/"))
    summary = storage.join(run, "summary.json")
    if not storage.exists(summary):
        raise ConfigError(f"`{folder}` lies in no finished run whose rows it could be tested on: name files by --data")
    prepared = storage.read_json(summary)["prepared"]
    if not storage.exists(storage.join(prepared, shards.MANIFEST)):
        raise ConfigError(f"the prepared data of `{run}` are gone from `{prepared}`: name files by --data")
    table = shards.read_split(prepared, shards.load_manifest(prepared), "valid", ["input_ids"])
    return model.rows([table.slice(0, count)])


def _program(graph: Graph) -> torch.export.ExportedProgram:
    shapes: Any = tuple(graph.shapes.values())
    if graph.name == "decoder":  # its last argument takes all that is kept
        shapes = (*shapes[:2], shapes[2:])
    return torch.export.export(graph.module, tuple(graph.inputs.values()), dynamic_shapes=shapes, strict=False)


def _content(kind: Format, graph: Graph, program: torch.export.ExportedProgram) -> bytes:
    if kind == "torch":
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return buffer.getvalue()
    onnx = torch.onnx.export(
        program, input_names=list(graph.inputs), output_names=graph.outputs, opset_version=OPSET, verbose=False
    )
    assert onnx is not None
    proto = onnx.model_proto  # made anew each time
    if kind == "onnx":
        content: bytes = proto.SerializeToString()
        return content
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The exporter's shapes of what lies between are of weights before it turned them, and the quantizer checks.
    del proto.graph.value_info[:]
    with tempfile.TemporaryDirectory(prefix="txclf-export-") as scratch:
        full, small = os.path.join(scratch, "full.onnx"), os.path.join(scratch, "small.onnx")
        with open(full, "wb") as file:
            file.write(proto.SerializeToString())
        quantize_dynamic(full, small, weight_type=QuantType.QInt8)
        with open(small, "rb") as file:
            return file.read()


def _runner(kind: Format, graph: Graph, content: bytes) -> Runner:
    """Runs what was written, read back from its bytes."""
    if kind == "torch":
        module = torch.export.load(io.BytesIO(content)).module()
        return lambda *inputs: module(*inputs)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        named = {name: value.numpy() for name, value in zip(graph.inputs, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(graph.outputs, named)]

    return run


@torch.inference_mode()
def _compare(model: Model, parts: Sequence[Graph], runners: Sequence[Runner], rows: TokenRows) -> dict[str, float]:
    """How the answers of a file differ from the bundle's over rows, and how fast each is."""
    own: list[Runner] = [part.module for part in parts]
    difference, alike, answers = 0.0, 0, 0
    seconds = [0.0, 0.0]
    for part in scoring_batches(rows.lengths, BATCH, rank=0, world_size=1, costs=rows.costs):
        sides = []
        answer = _classified(model, rows, part) if isinstance(model, Classifier) else _produced(model, rows, part)
        for side, ways in enumerate((own, runners)):
            start = time.perf_counter()
            sides.append(answer(ways))
            seconds[side] += time.perf_counter() - start
        expected, found = sides
        difference = max(difference, float((expected - found).abs().max()))
        same = _decided(model, expected) == _decided(model, found)
        alike += int(same.sum())
        answers += len(same)
    return {
        "largest_difference": difference,
        "agreement": alike / answers,
        "rows_per_second": len(rows) / seconds[1],
        "bundle_rows_per_second": len(rows) / seconds[0],
    }


def _decided(model: Model, logits: Tensor) -> np.ndarray:
    """The answer that logits (N, classes or vocabulary) stand for, one number or text a row."""
    if isinstance(model, Classifier) and model.is_multilabel:
        given = model.calibrated(logits.numpy()) >= model.thresholds
        return np.array([row.tobytes() for row in given])
    return logits.argmax(dim=1).numpy()


def _classified(model: Classifier, rows: TokenRows, part: Any) -> Callable[[Sequence[Runner]], Tensor]:
    """Logits (rows, C) of some rows, by the runner of the one graph."""
    ids, mask, segments, windows, _ = rows.pad(part)
    inputs = [ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask]
    inputs += [] if segments is None else [segments]
    return lambda runners: by_row(runners[0](*inputs)[0], windows, len(part))


def _produced(model: Seq2Seq, rows: TokenRows, part: Any) -> Callable[[Sequence[Runner]], Tensor]:
    """Logits (tokens, V) of what follows on each token of the bundle's own outputs, by encoder and decoder."""
    ids, mask, *_ = rows.pad(part)
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    begin, _ = target_ends(model.target_tokenizer)
    outputs = [[begin, *output] for output in model.output_ids(rows, part)]
    lengths = np.array([len(output) for output in outputs])
    target_ids, _ = padded(np.concatenate(outputs).astype(np.int32), lengths)
    settings, blocks = model.description.model, len(model.model.decoder)
    nothing = torch.zeros(len(ids), settings.num_heads, 0, settings.hidden_size // settings.num_heads)

    def answer(runners: Sequence[Runner]) -> Tensor:
        encoder, decoder = runners
        source, seen, steps = encoder(ids, mask), [nothing] * (2 * blocks), []
        for token in torch.split(target_ids, 1, dim=1):
            logits, *seen = decoder(token, mask, *source, *seen)
            steps.append(logits)
        return torch.stack(steps, dim=1)[torch.arange(len(steps)) < torch.from_numpy(lengths)[:, None]]

    return answer


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporters' notes about packages that are not there and operators that are not used."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
