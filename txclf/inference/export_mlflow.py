"""A bundle as an MLflow model: a pyfunc with signature, input example and requirements, without pickle.

mlflow/MLmodel, requirements.txt, input_example.json, …
       mlflow_model.py            code that MLflow runs to load the model
       artifacts/bundle/          copy of the bundle
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from txclf._version import __version__
from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.inference import bundle
from txclf.inference.load import Model
from txclf.inference.metadata import BundleMetadata
from txclf.inference.seq2seq import Seq2Seq

FOLDER = "mlflow"
"""Folder of the model in the folder of an export."""
CODE = "mlflow_model.py"
Scores = dict[str, float]
"""Largest difference of a probability, share of equal answers, and rows per second of both, as `Exported` has them."""
_PINNED = ("numpy", "pandas", "pyarrow", "safetensors", "tokenizers", "torch")
"""Packages whose installed versions become requirements."""


def require_package() -> None:
    """Raise `ConfigError` if MLflow is not installed."""
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError("--format mlflow needs the package `mlflow`. Run `pip install 'txclf[mlflow]'`.")


def export(model: Model, folder: str, out: str, rows: Sequence[tuple[str, ...]]) -> tuple[list[str], int, Scores]:
    """Write a bundle as an MLflow model to the folder `mlflow` of `out`, and compare it with the bundle on rows.

    The first row becomes the input example. Returns the written files, their size in bytes, and the comparison.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with tempfile.TemporaryDirectory(prefix="txclf-mlflow-") as scratch:
        local = os.path.join(scratch, FOLDER)
        _save(model.metadata, _copy_of(model.metadata, folder, scratch), local, rows[0])
        scores = _compare(model, local, rows)
        paths = [os.path.join(parent, name) for parent, _, names in os.walk(local) for name in names]
        names = sorted(
            (os.path.relpath(path, scratch) for path in paths), key=lambda name: (name.endswith("MLmodel"), name)
        )
        storage.remove_folder(storage.join(out, FOLDER))
        for name in names:  # the file that makes it a model comes last
            storage.copy_file(os.path.join(scratch, name), storage.join(out, name))
        return names, sum(map(os.path.getsize, paths)), scores


def _copy_of(metadata: BundleMetadata, folder: str, scratch: str) -> str:
    """Copy the files of a bundle, without its exports, to a local folder."""
    copy = os.path.join(scratch, "bundle")
    for name in (*metadata.sha256, bundle.CARD, bundle.METADATA):
        if storage.exists(storage.join(folder, name)):  # a bundle may lack its card
            storage.copy_file(storage.join(folder, name), os.path.join(copy, name))
    return copy


def _save(metadata: BundleMetadata, copy: str, target: str, example: Sequence[str]) -> None:
    import mlflow.pyfunc
    import pandas as pd

    mlflow.pyfunc.save_model(
        target,
        python_model=os.path.join(os.path.dirname(__file__), CODE),
        model_config={"task": metadata.task, "device": None},
        artifacts={"bundle": copy},
        signature=_signature(metadata),
        input_example=pd.DataFrame([example], columns=metadata.text_columns),
        pip_requirements=_requirements(metadata),
        metadata={"txclf_version": metadata.version, "task": metadata.task},
    )


def _compare(model: Model, local: str, rows: Sequence[tuple[str, ...]]) -> Scores:
    """Compare the predictions of a saved MLflow model with those of the bundle, and time both."""
    import mlflow.pyfunc
    import pandas as pd

    table = pd.DataFrame(rows, columns=model.metadata.text_columns)
    # On the device of the bundle: on another one the last digits differ, and with them a label now and then.
    saved = mlflow.pyfunc.load_model(local, model_config={"device": str(model.device)})
    start = time.perf_counter()
    found = saved.predict(table)
    middle = time.perf_counter()
    difference = 0.0
    if isinstance(model, Seq2Seq):
        expected: list[Any] = model.outputs(rows)
        answers = list(found["output"])
    else:
        scores = model.probabilities(rows)
        expected = model.predicted_labels(scores)
        answers = list(found["labels"]) if model.is_multilabel else [[label] for label in found["label"]]
        by_label = [[row[label] for label in model.labels] for row in found["probabilities"]]
        difference = float(np.abs(scores - np.array(by_label)).max())
    end = time.perf_counter()
    equal = sum(one == other for one, other in zip(answers, expected, strict=True))
    return {
        "largest_difference": difference,
        "agreement": equal / len(rows),
        "rows_per_second": len(rows) / (middle - start),
        "bundle_rows_per_second": len(rows) / (end - middle),
    }


def _signature(metadata: BundleMetadata) -> Any:
    """Return the columns of input and output."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array, Map

    text, number = DataType.string, DataType.double
    if metadata.task_spec.is_seq2seq:
        outputs = [ColSpec(text, "output")]
    elif metadata.task_spec.is_multilabel:
        outputs = [ColSpec(Array(text), "labels"), ColSpec(Map(number), "probabilities")]
    else:
        outputs = [ColSpec(text, "label"), ColSpec(number, "probability"), ColSpec(Map(number), "probabilities")]
    inputs = [ColSpec(text, column) for column in metadata.text_columns]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def _requirements(metadata: BundleMetadata) -> list[str]:
    """Return the requirements of a server: txclf, and the versions of this environment that compute predictions."""
    is_fine_tuned = metadata.model.pretrained is not None
    names = [*_PINNED, *(["transformers"] if is_fine_tuned else [])]
    extra = "[pretrained]" if is_fine_tuned else ""
    return [f"txclf{extra}=={__version__}", *(f"{name}=={version(name).partition('+')[0]}" for name in names)]
