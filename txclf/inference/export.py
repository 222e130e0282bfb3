"""Export a bundle to other runtimes: ONNX, a `torch.export` program, ONNX with 8-bit weights, and an MLflow model.

Every file is compared with the bundle on real rows, and kept only if it gives the same answers. `export.json`, written
last, records the inputs and outputs of each file and its difference from the bundle.

    model.onnx, model.pt2, model.int8.onnx               a classifier
    encoder.onnx, decoder.onnx and so on                 a `seq2seq` model: the source once, then one call per token
    mlflow/                                              any model, as the pyfunc of MLflow
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
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel
from torch import Tensor

from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.core.text import shown
from txclf.data import detect, records, shards, sources
from txclf.data.batches import TokenRows, padded
from txclf.data.sampler import Ints, scoring_batches
from txclf.data.tokenizer import target_ends
from txclf.inference import bundle, export_mlflow
from txclf.inference.classifier import Classifier
from txclf.inference.export_graphs import Graph, graphs
from txclf.inference.load import Model, load_model
from txclf.inference.metadata import BundleMetadata
from txclf.inference.seq2seq import Seq2Seq
from txclf.model.classifier import by_row

Format = Literal["onnx", "torch", "int8", "mlflow"]
FORMATS: tuple[Format, ...] = get_args(Format)
DEFAULTS: tuple[Format, ...] = ("onnx", "torch", "int8")
"""Formats of an export that names none: those that need neither txclf nor its bundle."""
ENDINGS = {"onnx": "onnx", "torch": "pt2", "int8": "int8.onnx"}
OPSET = 20
"""Version of the ONNX operator set."""
TOLERANCE = 1e-3
"""Largest allowed difference of a logit in a full-precision file."""
MAX_ONNX_BYTES = 2**31 - 2**24
"""Largest weights of an ONNX file, which protobuf limits to 2 GiB."""
RECORD = "export.json"
BATCH_ROWS = 32

Runner = Callable[..., Sequence[Tensor]]
"""Runs a graph: maps its inputs to its outputs, both in order."""
Compute = Callable[[Sequence[Runner]], Tensor]
"""Computes the logits of a batch by the runners of all graphs."""


class Exported(BaseModel):
    """One exported format, compared with the bundle on the same rows."""

    format: Format
    files: list[str]
    kept: bool
    """True if the files were written."""
    bytes: int
    """Size of the files together."""
    rows: int
    """Number of rows compared."""
    largest_difference: float
    """Largest absolute difference of a logit; of a probability in an MLflow model."""
    agreement: float
    """Share of equal answers: predicted labels of a row, or most likely next tokens of a `seq2seq` model."""
    rows_per_second: float
    bundle_rows_per_second: float
    """Speed of the bundle on the same rows, with as many threads."""


def export(
    folder: str,
    out: str | None = None,
    *,
    formats: Sequence[Format] = DEFAULTS,
    data: Sequence[str] | None = None,
    rows: int = 1000,
    min_agreement: float = 0.98,
) -> list[Exported]:
    """Write a bundle in other formats to `out`, by default its folder `export`; keep each file that passes.

    The files are compared with the bundle on the rows of `data`, by default the validation rows of the run of the
    bundle. A full-precision file must give the same answer for each row; an 8-bit file for a share of `min_agreement`.
    An MLflow model needs texts: without `data` it is compared on a made-up row.

    Raises `ConfigError` if there are no rows or a package is missing, `BundleError` if the folder is not a bundle.
    """
    _require_packages(formats)
    model = load_model(folder, "cpu")
    network = model.network_only() if isinstance(model, Classifier) else model
    texts = None if data is None else _texts(model, data, rows)
    graph_formats = [name for name in formats if name != "mlflow"]
    _require_size(network, graph_formats)
    sample = _sample_rows(network, folder, texts, rows) if graph_formats else None
    out = out or storage.join(folder, "export")
    storage.require_writable(out)
    storage.remove_file(storage.join(out, RECORD))  # of an earlier export
    model_graphs = graphs(network) if graph_formats else []
    exported = []
    with _quiet():
        programs = [(graph, _program(graph)) for graph in model_graphs]
        for form in formats:
            if sample is None or form == "mlflow":
                exported.append(_export_mlflow(model, folder, out, texts))
            else:
                exported.append(
                    _export_format(form, network, programs, sample=sample, out=out, min_agreement=min_agreement)
                )
    for name in model.metadata.sha256.keys() - {bundle.WEIGHTS, bundle.NGRAMS}:
        storage.copy_file(storage.join(folder, name), storage.join(out, name))
    record = _record(network, model_graphs, exported)
    storage.write_json(storage.join(out, RECORD), record | {"left_out": left_out(model.metadata)})
    return exported


def _require_size(network: Model, formats: Sequence[Format]) -> None:
    """Raise `ConfigError` if an ONNX file cannot hold the weights."""
    size = sum({weight.data_ptr(): weight.nbytes for weight in network.model.state_dict().values()}.values())
    if size > MAX_ONNX_BYTES and (named := [name for name in formats if name in ("onnx", "int8")]):
        raise ConfigError(
            f"--format {named[0]}: the network has {size / 2**30:.1f} GiB of weights, and an ONNX file at most 2. Pass "
            "--format torch or --format mlflow."
        )


def left_out(metadata: BundleMetadata) -> list[str]:
    """Return the parts of a bundle that graphs do not hold."""
    return ["ngrams"] if metadata.ngrams else []


def parse_format(name: str) -> Format:
    """Return the format of that name. Raises `ConfigError` for an unknown one."""
    for known in FORMATS:
        if known == name:
            return known
    raise ConfigError(f"--format {name}: unknown format. Pass one of {', '.join(FORMATS)}.")


def _export_format(
    name: Format,
    model: Model,
    programs: Sequence[tuple[Graph, torch.export.ExportedProgram]],
    *,
    sample: TokenRows,
    out: str,
    min_agreement: float,
) -> Exported:
    """Convert a model to one format, compare the files with it, and write them if they pass."""
    contents = [_content(name, graph, program) for graph, program in programs]
    runners = [_runner(name, graph, content) for (graph, _), content in zip(programs, contents, strict=True)]
    result = _compare(model, [graph for graph, _ in programs], runners, sample)
    is_exact = result["agreement"] == 1.0 and result["largest_difference"] <= TOLERANCE
    kept = result["agreement"] >= min_agreement if name == "int8" else is_exact
    files = [f"{graph.name}.{ENDINGS[name]}" for graph, _ in programs]
    for file, content in zip(files, contents, strict=True):
        if kept:
            storage.write_bytes(storage.join(out, file), content)
        else:
            storage.remove_file(storage.join(out, file))
    size = sum(map(len, contents))
    return Exported(format=name, files=files, kept=kept, bytes=size, rows=len(sample), **result)


def _export_mlflow(model: Model, folder: str, out: str, texts: Sequence[tuple[str, ...]] | None) -> Exported:
    """Write a model as an MLflow model, and remove it again if it does not give the answers of the bundle."""
    rows = texts or [("some text",) * len(model.metadata.text_columns)]
    files, size, scores = export_mlflow.export(model, folder, out, rows)
    kept = scores["agreement"] == 1.0 and scores["largest_difference"] <= TOLERANCE
    if not kept:
        storage.remove_folder(storage.join(out, export_mlflow.FOLDER))
    return Exported(format="mlflow", files=files, kept=kept, bytes=size, rows=len(rows), **scores)


def _record(model: Model, model_graphs: Sequence[Graph], exported: Sequence[Exported]) -> dict[str, Any]:
    """Return the content of `export.json`."""
    metadata = model.metadata
    return {
        "task": metadata.task,
        "labels": metadata.labels,
        "max_length": metadata.max_length,
        "truncation": metadata.truncation.model_dump(),
        "special_tokens": None if metadata.special_tokens is None else metadata.special_tokens.model_dump(),
        "temperature": metadata.temperature,
        "thresholds": metadata.thresholds,
        "opset": OPSET,
        "graphs": {graph.name: {"inputs": list(graph.inputs), "outputs": graph.outputs} for graph in model_graphs},
        "formats": [result.model_dump() for result in exported],
    }


def _require_packages(formats: Sequence[Format]) -> None:
    missing = [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if "mlflow" in formats:
        export_mlflow.require_package()
    if missing and set(formats) & {"onnx", "int8"}:
        raise ConfigError(f"ONNX export needs the package `{missing[0]}`. Run `pip install 'txclf[export]'`.")


def _texts(model: Model, data: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Return the text columns of the first rows of files, whose encoding and delimiter are found out."""
    columns = tuple(model.metadata.text_columns)
    batches = (batch for source in _detected(data) for batch, _ in records.read_rows(source, columns, None))
    texts = list(islice((text for batch in batches for text in batch.texts), count))
    if not texts:
        raise DataError(f"no usable row in {', '.join(data)}. Pass --data with files that have rows.")
    return texts


def _detected(data: Sequence[str]) -> Iterator[sources.Source]:
    """Yield the sources of files, each with the encoding and delimiter that it seems to have."""
    for source in sources.find_sources(data):
        encoding, delimiter = detect.of_files([source])
        yield replace(source, encoding=encoding, delimiter=delimiter)


def _sample_rows(model: Model, folder: str, texts: Sequence[tuple[str, ...]] | None, count: int) -> TokenRows:
    """Return texts as rows of the model; without them, the validation rows of the run that contains the bundle."""
    if texts is not None:
        return model.rows([pa.table({"input_ids": model.encode(texts)})])
    run = storage.folder_of(folder)
    summary = storage.join(run, "summary.json")
    if not storage.exists(summary):
        raise ConfigError(f"`{folder}`: not in a finished run, so there are no rows to compare on. Pass --data FILE.")
    prepared = storage.read_object(summary, "prepared")["prepared"]
    if not storage.exists(storage.join(prepared, shards.MANIFEST)):
        raise ConfigError(f"`{prepared}`: the prepared data of `{run}` are missing. Pass --data FILE.")
    table = shards.read_split(prepared, shards.load_manifest(prepared), "valid", ["input_ids"])
    return model.rows([table.slice(0, count)])


def _program(graph: Graph) -> torch.export.ExportedProgram:
    shapes: Any = tuple(graph.shapes.values())
    if graph.name == "decoder":  # its last argument is the whole cache
        shapes = (*shapes[:2], shapes[2:])
    try:
        return torch.export.export(graph.module, tuple(graph.inputs.values()), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of any kind, for networks with branches that depend on values
        reason = shown((str(error).strip().splitlines() or [type(error).__name__])[0], 300)
        raise ConfigError(f"PyTorch cannot export this network: {reason}. Pass --format mlflow.") from error


def _content(name: Format, graph: Graph, program: torch.export.ExportedProgram) -> bytes:
    if name == "torch":
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return buffer.getvalue()
    onnx = torch.onnx.export(
        program, input_names=list(graph.inputs), output_names=graph.outputs, opset_version=OPSET, verbose=False
    )
    assert onnx is not None
    proto = onnx.model_proto  # a new object at each access
    if name == "onnx":
        content: bytes = proto.SerializeToString()
        return content
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The exporter records shapes of intermediate values from before it transposed weights; the quantizer rejects them.
    del proto.graph.value_info[:]
    with tempfile.TemporaryDirectory(prefix="txclf-export-") as scratch:
        full, small = os.path.join(scratch, "full.onnx"), os.path.join(scratch, "small.onnx")
        with open(full, "wb") as file:
            file.write(proto.SerializeToString())
        # A scale per channel in 7 bits loses least: sums of products of 8 bits overflow on some CPUs.
        quantize_dynamic(full, small, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
        with open(small, "rb") as file:
            return file.read()


def _runner(name: Format, graph: Graph, content: bytes) -> Runner:
    """Return a function that runs a graph loaded from the bytes of its file."""
    if name == "torch":
        module = torch.export.load(io.BytesIO(content)).module()
        return lambda *inputs: module(*inputs)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        named = {key: value.numpy() for key, value in zip(graph.inputs, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(graph.outputs, named)]

    return run


@torch.inference_mode()
def _compare(
    model: Model, model_graphs: Sequence[Graph], runners: Sequence[Runner], rows: TokenRows
) -> dict[str, float]:
    """Compare the answers of the exported graphs (`runners`) with those of the bundle, and time both."""
    modules = [graph.module for graph in model_graphs]
    has_segments = "segments" in model_graphs[0].inputs
    difference, equal, answers = 0.0, 0, 0
    bundle_seconds = export_seconds = 0.0
    for batch in scoring_batches(rows.lengths, BATCH_ROWS, rows.costs):
        if isinstance(model, Seq2Seq):
            compute = _seq2seq_logits(model, rows, batch)
        else:
            compute = _logits(rows, batch, has_segments)
        expected, seconds = _timed(compute, modules)
        bundle_seconds += seconds
        logits, seconds = _timed(compute, runners)
        export_seconds += seconds
        difference = max(difference, float((expected - logits).abs().max()))
        is_equal = _decisions(model, expected) == _decisions(model, logits)
        equal += int(is_equal.sum())
        answers += len(is_equal)
    return {
        "largest_difference": difference,
        "agreement": equal / answers,
        "rows_per_second": len(rows) / export_seconds,
        "bundle_rows_per_second": len(rows) / bundle_seconds,
    }


def _timed(compute: Compute, runners: Sequence[Runner]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    logits = compute(runners)
    return logits, time.perf_counter() - start


def _decisions(model: Model, logits: Tensor) -> np.ndarray:
    """Return one comparable value per row of logits (rows, classes or vocabulary): the class, or the set of labels."""
    if isinstance(model, Classifier) and model.is_multilabel:
        predicted = model.calibrated(logits.numpy()) >= model.thresholds
        return np.array([row.tobytes() for row in predicted])
    return logits.argmax(dim=1).numpy()


def _logits(rows: TokenRows, batch: Ints, has_segments: bool) -> Compute:
    """Return a function that computes the logits (rows, C) of a batch by the one graph of a classifier."""
    ids, mask, segments, windows, _ = rows.pad(batch)
    inputs = [ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask]
    inputs += [segments] if has_segments and segments is not None else []
    return lambda runners: by_row(runners[0](*inputs)[0], windows, len(batch))


def _seq2seq_logits(model: Seq2Seq, rows: TokenRows, batch: Ints) -> Compute:
    """Return a function that computes the logits (tokens, V) after each token of the outputs of the bundle."""
    ids, mask, *_ = rows.pad(batch)
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    begin, _ = target_ends(model.target_tokenizer)
    outputs = [[begin, *output] for output in model.output_ids(rows, batch)]
    lengths = np.array([len(output) for output in outputs])
    target_ids, _ = padded(np.concatenate(outputs).astype(np.int32), lengths)
    settings, blocks = model.metadata.model, len(model.model.decoder)
    empty = torch.zeros(len(ids), settings.num_heads, 0, settings.hidden_size // settings.num_heads)

    def compute(runners: Sequence[Runner]) -> Tensor:
        encoder, decoder = runners
        source, past, steps = encoder(ids, mask), [empty] * (2 * blocks), []
        for token in torch.split(target_ids, 1, dim=1):
            logits, *past = decoder(token, mask, *source, *past)
            steps.append(logits)
        return torch.stack(steps, dim=1)[torch.arange(len(steps)) < torch.from_numpy(lengths)[:, None]]

    return compute


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the notes of the exporters about missing packages and unused operators."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
