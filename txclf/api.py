"""The public functions: what the commands of the command line do, from Python.

    import txclf

    run = txclf.load_config("run.yaml", ["train.epochs=2"])
    summary = txclf.train(run)
    scores = txclf.evaluate(run.run_folder)
    done = txclf.predict(f"{run.run_folder}/model", ["new.csv"], out="predictions.csv")

Each takes at most two positional parameters. A run is a `RunConfig`, the path of a run file, or a mapping with the
keys of a run file. Data are paths or tables in memory: `txclf.train(settings, data=frame)`. With `compute.workers`
above 0 the work runs on Ray: the Ray that this process is connected to, the cluster at `compute.address`, or a local
one that ends with the call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from txclf.config import recipes, run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError

if TYPE_CHECKING:
    from ray.train import Result

    from txclf.evaluation.drift import Drift
    from txclf.evaluation.evaluate import Scores
    from txclf.evaluation.learning_curve import Curve
    from txclf.inference.export import Exported
    from txclf.prediction.predict import PredictionSummary
    from txclf.training.progress import Progress
    from txclf.training.train import RunSummary
    from txclf.tuning.callbacks import SearchState
    from txclf.tuning.tune import Search

Data = Any
"""A path or paths, or a table in memory: a pandas or Polars DataFrame, a `Dataset` of Hugging Face, an Arrow table, or
another object with the Arrow stream interface."""
Table = TypeVar("Table")
Run = RunConfig | str | os.PathLike[str] | Mapping[str, Any]
"""A run, the path of its file, or its settings."""


def load_config(source: Run | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return a checked run with absolute paths.

    `source` is the path or URI of a run file, a mapping with its keys, a run, or None for the defaults. `overrides`
    are `a.b=value` strings whose values are YAML.

    Raises `ConfigError` naming every key that is wrong.

        run = txclf.load_config("run.yaml", ["train.epochs=2", "data.train=my.csv"])
    """
    if isinstance(source, RunConfig):
        source = recipes.without_task_defaults(source)
    if not isinstance(source, str | os.PathLike | Mapping | None):
        raise ConfigError(
            f"`{type(source).__name__}`: not a run. Pass a path, a mapping or a run, and a table as `data=table`."
        )
    if isinstance(source, Mapping):
        return run_config.parse(run_config.override(source, _as_list(overrides)), "settings")
    return run_config.load(source, _as_list(overrides))


def prepare(
    run: Run | None = None,
    *,
    data: Data = None,
    valid: Data = None,
    test: Data = None,
    on_progress: Callable[[str, int], None] | None = None,
) -> str:
    """Turn the raw data of a run into token shards and return the prepared folder.

    Does nothing if the folder is complete. `data`, `valid` and `test` work as in `train`. `on_progress` receives the
    stage and the number of rows read.

    Raises `DataError` for missing files, bad rows and data that cannot train a model.

        folder = txclf.prepare("run.yaml")
    """
    from txclf.data import tables
    from txclf.data.prepare import prepare as prepare_data
    from txclf.launch import preflight

    run = tables.with_data(load_config(run), data, valid, test)
    with preflight.connected(run.compute, run.storage):
        return prepare_data(run, on_progress or (lambda stage, rows: None))


def train(
    run: Run | None = None,
    overrides: Sequence[str] = (),
    *,
    data: Data = None,
    valid: Data = None,
    test: Data = None,
    resume: bool = False,
    on_progress: Callable[[Progress], bool | None] | None = None,
) -> RunSummary:
    """Prepare the data, train, and bundle the best model; return the run summary.

    `data`, `valid` and `test` replace the keys of `data`: paths, or tables in memory, such as DataFrames, whose columns
    `data.text` and `data.label` name. A table is stored as `storage/tables/<hash>.parquet`. `data` may also be a
    mapping from `train`, `valid` (or `validation`), `test` and `unlabelled` to them, as a `DatasetDict` is.

    `on_progress` is called a few times a second; if it returns True before the last step, a checkpoint is saved and
    `Interrupted` raised. With `resume` a stopped run continues from there, and a finished one returns its summary.

    Raises `ConfigError` if the run folder exists and `resume` is False, or does not exist and `resume` is True.

        summary = txclf.train("run.yaml", ["train.epochs=2"])
        print(summary.best, summary.model)
    """
    from txclf.data import tables
    from txclf.launch import preflight
    from txclf.training import train as training

    run = tables.with_data(load_config(run, overrides), data, valid, test)
    if finished := training.check_folder(run, resume):
        return finished
    with preflight.connected(run.compute, run.storage, trains=True):
        prepared = training.recorded_data(run) or prepare(run)
        return training.train(run, prepared, lambda progress: bool(on_progress and on_progress(progress)))


def distill(
    teacher: str | os.PathLike[str],
    run: Run | None = None,
    *,
    overrides: Sequence[str] = (),
    data: Data = None,
    valid: Data = None,
    test: Data = None,
    resume: bool = False,
    on_progress: Callable[[Progress], bool | None] | None = None,
) -> RunSummary:
    """Train a run on the answers of the bundle `teacher`: `train` with the key `distill.teacher`.

    Raises `ConfigError` as `train` does, and for a teacher of another task or with other labels.
    """
    taught = run_config.with_overrides(load_config(run, overrides), {"distill.teacher": storage.path_text(teacher)})
    return train(taught, data=data, valid=valid, test=test, resume=resume, on_progress=on_progress)


def ray_result(run_folder: str | os.PathLike[str]) -> Result:
    """Return a run, running or finished, as Ray Train's `Result`.

    `checkpoint` is the last committed checkpoint, `metrics` the last validation. `best_checkpoints` holds the
    checkpoints that still exist, `metrics_dataframe` every validation. Nothing is copied.

    Raises `ConfigError` if the folder is not a run.
    """
    from txclf.training.distributed.ray_result import ray_result as result_of

    return result_of(os.fspath(run_folder))


def tune(
    run: Run | None = None,
    overrides: Sequence[str] = (),
    *,
    data: Data = None,
    valid: Data = None,
    test: Data = None,
    resume: bool = False,
    extend: int = 0,
    on_progress: Callable[[SearchState], bool | None] | None = None,
) -> Search:
    """Search the settings named in `tune.space` and return the summary of the search.

    `extend` adds trials to a search. `data`, `valid`, `test` and `on_progress` work as in `train`.

    Raises `ConfigError` as `train` does, and for a search space that makes no sense.

        print(txclf.tune("search.yaml").settings)
    """
    from txclf.data import tables
    from txclf.launch import preflight
    from txclf.tuning import tune as tuning

    wanted = tables.with_data(load_config(run, overrides), data, valid, test)
    with tuning.opened(wanted, resume, extend) as run, preflight.connected(run.compute, run.storage, searches=True):
        return tuning.tune(run, tuning.plan(run), lambda state: bool(on_progress and on_progress(state)))


def evaluate(
    run_folder: str | os.PathLike[str],
    data: Data = None,
    *,
    baseline: bool = True,
    workers: int = 0,
    gpus_per_worker: float = 0.0,
) -> Scores:
    """Score a finished run on its test split, or on other labelled `data`; write and return the scores.

    `data` are paths or a table in memory, which is stored in the run folder. With `baseline` the majority class and an
    n-gram linear model are scored too. `workers` is the number of Ray workers that score, each with `gpus_per_worker`
    GPUs; 0 = this process.

    Raises `ConfigError` if the folder is not a finished run or has no test split, `DataError` for bad rows.

        print(txclf.evaluate("runs/trec")["accuracy"])
    """
    from txclf.evaluation.evaluate import evaluate as score
    from txclf.launch import preflight

    compute = run_config.worker_compute(workers, {"gpus_per_worker": gpus_per_worker or None})
    with preflight.connected(compute, storage.absolute(run_folder)):
        return score(storage.path_text(run_folder), data, baseline, compute)


def drift(
    run_folder: str | os.PathLike[str], data: Data, *, encoding: str | None = None, delimiter: str | None = None
) -> Drift:
    """Compare new texts with the rows of a finished run that its model was not trained on; write and return the result.

    `data` are paths or a table in memory, without labels. `encoding` and `delimiter` default to those of the run.
    Raises `ConfigError` for a run of `seq2seq` or one that was trained on all its rows, `DataError` without a row.
    """
    from txclf.reports.result_pages import drift as compare

    return compare(storage.path_text(run_folder), data, encoding=encoding, delimiter=delimiter)


def curve(run_folder: str | os.PathLike[str], *, points: int = 4) -> Curve:
    """Train a finished run on parts of its rows, and return the scores and what more labelled rows would bring.

    Raises `ConfigError` for a run without validation rows, `DataError` for one with too few rows.
    """
    from txclf.evaluation import learning_curve
    from txclf.reports import result_pages

    planned = learning_curve.plan(storage.path_text(run_folder), points)
    for part in planned.parts.values():
        train(part, resume=learning_curve.is_begun(part))
    return result_pages.curve(planned)


def audit(
    run_folder: str | os.PathLike[str], *, folds: int = 5, out: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Find rows whose label is probably wrong, write them to `suspects.csv` in `out`, and return a summary.

    Raises `ConfigError` if the folder is not a run with labels, or a `suspects.csv` there has been filled in.
    """
    from txclf.reports.result_pages import audit as audit_labels

    return audit_labels(run_folder, folds=folds, out=out)


@overload
def predict(
    model: str | os.PathLike[str],
    inputs: Data,
    *,
    out: str | os.PathLike[str],
    probabilities: bool = ...,
    coverage: float | None = ...,
    text_columns: Sequence[str] | None = ...,
    encoding: str = ...,
    delimiter: str | None = ...,
    workers: int = ...,
    gpus_per_worker: float = ...,
    restart: bool = ...,
    on_progress: Callable[[int], None] | None = ...,
) -> PredictionSummary: ...


@overload
def predict(
    model: str | os.PathLike[str],
    inputs: Table,
    *,
    probabilities: bool = ...,
    coverage: float | None = ...,
    text_columns: Sequence[str] | None = ...,
    on_progress: Callable[[int], None] | None = ...,
) -> Table: ...


def predict(
    model: str | os.PathLike[str],
    inputs: Any,
    *,
    out: str | os.PathLike[str] | None = None,
    probabilities: bool = False,
    coverage: float | None = None,
    text_columns: Sequence[str] | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    workers: int = 0,
    gpus_per_worker: float = 0.0,
    restart: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Any:
    """Predict every row of the input files into the file `out`; its ending gives the format.

    A table in memory, such as a DataFrame, is returned with the predictions as additional columns, in this process; its
    rows without a text have nulls in them.

    `probabilities` adds a column for each label. `coverage` adds the column `labels_in_set`: the labels among which the
    true one is with this probability. `text_columns` names the text columns if they differ from those of training.
    `encoding` is that of text files, `delimiter` that of csv files; None is a comma. `workers` is the number of Ray
    workers, each with `gpus_per_worker` GPUs; 0 = this process. `on_progress` receives the number of rows done. An
    interrupted prediction resumes when it is called again with the same arguments; `restart` starts over.

    Raises `BundleError` for a folder that is not a bundle, `DataError` for inputs that cannot be read.

        done = txclf.predict("runs/trec/model", ["new.csv"], out="predictions.parquet", probabilities=True)
    """
    from txclf.data import tables
    from txclf.launch import preflight
    from txclf.prediction.predict import predict as predict_files
    from txclf.prediction.tables import predict_table

    columns = None if text_columns is None else _as_list(text_columns)
    report = on_progress or (lambda rows: None)
    if tables.is_table(inputs):
        if out is not None or workers or gpus_per_worker or restart:
            raise ConfigError(
                "`inputs`: a table in memory is predicted in this process and returned. Remove `out`, `workers`, "
                "`gpus_per_worker` and `restart`, or write the table to a file and pass its path."
            )
        return predict_table(storage.path_text(model), inputs, probabilities, columns, report, coverage)
    if out is None:
        raise ConfigError("`out`: not set. Pass the path of the output file, or a table in memory as `inputs`.")
    compute = run_config.worker_compute(workers, {"gpus_per_worker": gpus_per_worker or None})
    with preflight.connected(compute, storage.folder_of(out)):
        return predict_files(
            storage.path_text(model),
            tables.file_paths(inputs, "inputs"),
            out=os.fspath(out),
            probabilities=probabilities,
            coverage=coverage,
            text_columns=columns,
            encoding=encoding,
            delimiter=delimiter,
            on_progress=report,
            compute=compute,
            restart=restart,
        )


def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    formats: Sequence[str] | None = None,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    rows: int = 1000,
    min_agreement: float = 0.98,
) -> list[Exported]:
    """Write a bundle as ONNX, torch.export and 8-bit ONNX; keep each file that answers as the bundle does.

    `out` is a folder, by default `export` in the bundle. `formats` are some of `onnx`, `torch`, `int8` and `mlflow`,
    by default the first three. The files are compared with the bundle on up to `rows` rows of `data`, by default the
    validation rows of its run; an 8-bit file is kept if at least `min_agreement` of its answers are the same.

    Raises `BundleError` for a folder that is not a bundle, `ConfigError` if there are no rows to compare.

        exported = txclf.export("runs/trec/model", formats=["onnx"])
    """
    from txclf.data import tables
    from txclf.inference import export as exporting

    wanted = [exporting.parse_format(name) for name in _as_list(formats or exporting.DEFAULTS)]
    sample = None if data is None else tables.file_paths(data, "data")
    options: dict[str, Any] = {"formats": wanted, "data": sample, "rows": rows, "min_agreement": min_agreement}
    return exporting.export(os.fspath(model), None if out is None else os.fspath(out), **options)


def serve(model: str | os.PathLike[str], *, on_ready: Callable[[str], None] | None = None, **settings: Any) -> bool:
    """Answer HTTP requests with a bundle until SIGINT or SIGTERM; return True if every open request was answered.

    `settings` are the fields of `txclf.serving.settings.Settings`, such as `port`, `replicas` and `token`. `on_ready`
    receives the URL when the service answers.

    Raises `BundleError` for a folder that is not a bundle, `ConfigError` for wrong settings or a port that is taken.

        txclf.serve("runs/trec/model", port=8000, on_ready=print)
    """
    from txclf.serving.settings import Settings, require_packages

    require_packages()
    from txclf.serving.serve import serve as serve_bundle

    ready = on_ready or (lambda url: None)
    return serve_bundle(os.fspath(model), Settings(**settings), lambda started: ready(started.url))


def _as_list(values: Sequence[str]) -> list[str]:
    """Return strings as a list, also a single one."""
    return [values] if isinstance(values, str) else list(values)
