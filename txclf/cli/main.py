"""The command line: one thin command per verb, heavy imports inside the command."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from txclf._version import __version__
from txclf.cli import cluster, export, results, serve
from txclf.cli.cluster import Overrides, RunFile
from txclf.core.errors import TxclfError

if TYPE_CHECKING:
    from txclf.config.run_config import RunConfig

app = typer.Typer(
    name="txclf",
    help="Train transformer text classifiers, from labelled files to a measured, usable model, by one run file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]


COLLECT_AFTER = 50_000
"""Objects made and not freed, until cycles are looked for; Python's 700 do so hundreds of times while modules load."""

app.add_typer(cluster.commands)
app.add_typer(export.commands)
app.add_typer(serve.commands)
app.add_typer(results.commands)


@app.command()
def config(
    run_file: Annotated[str | None, typer.Argument(metavar="[RUN.yaml]", show_default=False)] = None,
    words: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON Schema for editors instead.")] = False,
) -> None:
    """Check a run file and print it resolved, every key written out."""
    from txclf.config import run_config as settings

    if run_file and "=" in run_file and not os.path.exists(run_file):
        words = [run_file, *(words or [])]
        run_file = None
    print(settings.schema() if schema else settings.dump(settings.load(run_file, words or [])), end="")
    if schema:
        print()


@app.command()
def prepare(run_file: RunFile, words: Overrides = None) -> None:
    """Turn raw labelled files into token shards, a tokenizer and an audit."""
    from txclf.config import run_config as settings

    _prepare(settings.load(run_file, words or []))


@app.command()
def train(run_file: RunFile, words: Overrides = None, resume: Resume = False) -> None:
    """Prepare the data if need be, train, and bundle the best model."""
    started = time.time()
    from txclf.config import run_config as settings

    _train(settings.load(run_file, words or []), resume, started)


@app.command()
def tune(
    run_file: RunFile,
    words: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search that was stopped.")] = False,
    extend: Annotated[int, typer.Option("--extend", min=0, help="Add so many trials to a search.")] = 0,
    refit: Annotated[bool, typer.Option("--refit", help="Then train the winner on train and valid rows.")] = False,
    refit_workers: Annotated[
        int | None, typer.Option("--refit-workers", min=0, help="Workers of --refit, if not the run file's.")
    ] = None,
) -> None:
    """Search settings: many trials, each an ordinary run, the poor ones stopped early, the best one bundled."""
    from txclf.config import run_config as settings
    from txclf.core import storage

    run = settings.load(run_file, words or [])
    refitted = _tune(run, resume, extend, refit or refit_workers is not None, refit_workers)
    if refitted:
        _train(refitted, storage.exists(storage.join(refitted.run_folder, "run.yaml")), time.time())


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)],
    data: Annotated[list[str] | None, typer.Option("--data", help="Labelled files instead of the test split.")] = None,
    baseline: Annotated[bool, typer.Option(help="Whether to train the baselines too.")] = True,
) -> None:
    """Score a run on its test split, beside the majority class and an n-gram logistic regression."""
    _evaluate(run, data, baseline)
    results.page(run)


@app.command()
def demo(
    folder: Annotated[str, typer.Option("--folder", help="Where to put all of it.")] = "runs/demo",
) -> None:
    """The whole way on a small corpus made of Python's own source: data, training, evaluation, predictions."""
    started = time.time()
    from txclf.config import run_config as settings
    from txclf.data import demo_corpus as corpus

    files = corpus.write_corpus(os.path.join(folder, "corpus"))
    print(f"made a corpus of Python functions, each labelled by its package: {folder}/corpus")
    run = settings.parse(
        {
            "name": "run",
            "storage": folder,
            "data": {split: os.path.abspath(path) for split, path in files.items()},
            "tokenizer": {"vocab_size": 4000, "max_length": 192, "lowercase": False},
            "model": {"num_layers": 1, "hidden_size": 96, "num_heads": 4, "intermediate_size": 192},
            "train": {"epochs": 8, "batch_size": 32, "learning_rate": 3e-3, "monitor": "valid_accuracy"},
        },
        "demo",
    )
    import shutil

    shutil.rmtree(run.run_folder, ignore_errors=True)
    _train(run, resume=False, started=started, page=False)
    _evaluate(run.run_folder)
    results.page(run.run_folder)
    _show_predictions(run)
    print(
        f"""
Everything lies in {folder}:
  corpus/             the data (train.jsonl, valid.jsonl, test.jsonl)
  run/run.yaml        the run file      run/metrics.jsonl  the curves     run/metrics.json  the test scores
  run/report.html     all of it as a page, for a browser
  run/model           the model, for `Classifier.load` and `txclf predict`
Try next:
  txclf predict {folder}/run/model {folder}/corpus/test.jsonl --out predictions.csv
  txclf train {folder}/run/run.yaml name=wider model.hidden_size=128
  txclf train {folder}/run/run.yaml name=ray compute.workers=2 compute.cpus_per_worker=0.5
  tensorboard --logdir {folder}"""
    )


def _prepare(run: RunConfig) -> str:
    from txclf.cli import console, tables
    from txclf.data import prepare as verb
    from txclf.data import shards

    started = time.monotonic()
    with _ray(run), console.Bar("preparing") as bar:
        folder = verb.prepare(run, lambda stage, rows: bar.update(rows, None, "rows", stage))
    manifest = shards.load_manifest(folder)
    took = console.seconds(time.monotonic() - started)
    about = f"{len(manifest.labels)} labels" if manifest.labels else f"{manifest.target_vocab_size:,} target tokens"
    print(f"prepared data: {folder} ({about}, {manifest.vocab_size:,} tokens, {took})")
    columns = ["split", "rows", "rejected", "tokens", "cut rows", "lost", "doubles", "in train"]
    console.table(
        "Data",
        columns,
        [
            [
                name,
                f"{split.rows:,}",
                f"{split.rejected:,}",
                f"{split.tokens:,}",
                f"{split.truncated_rows:,}",
                f"{split.truncated_token_share:.1%}",
                f"{split.duplicates:,}",
                f"{split.duplicates_of_train:,}",
            ]
            for name, split in manifest.splits.items()
        ],
    )
    tables.labels(run, manifest)
    return folder


def _train(run: RunConfig, resume: bool, started: float, page: bool = True) -> None:
    from txclf.cli import console, tables
    from txclf.launch import preflight
    from txclf.training import train as verb
    from txclf.training.precision import choose_precision, uses_gpu
    from txclf.training.progress import Interrupted, Progress

    finished = verb.check_folder(run, resume)
    if finished:
        print(f"`{run.run_folder}` is finished already")
        tables.print_run_summary(run, finished)
        return
    with _ray(run):
        if run.compute.on_ray:
            preflight.require_shared(run.storage)
        prepared = verb.recorded_data(run) or _prepare(run)
        if not run.compute.on_ray:
            precision, reason = choose_precision(run.train.precision, uses_gpu(run.compute))
            print(f"precision {precision}: {reason}")
        with _signals() as asked, console.Bar("training") as bar:
            shown: dict[str, float] = {}
            told = [0]

            def show(progress: Progress) -> bool:
                note = f"{progress.stage}, " if progress.stage != "training" else ""
                note += f"epoch {progress.epoch:.2f}"
                if progress.train_loss == progress.train_loss:  # not a number before the first log line
                    note += f"  loss {progress.train_loss:.4f}"
                note += f"  {progress.tokens_per_second:,.0f} tokens/s"
                for text in progress.notes[told[0] :]:
                    bar.line(text)
                told[0] = len(progress.notes)
                if progress.total_steps:
                    bar.update(progress.step, progress.total_steps, note)
                else:
                    bar.update(0, None, "waiting for the workers")
                if progress.valid and progress.valid != shown:
                    shown.update(progress.valid)
                    scores = "  ".join(f"{name} {value:.4f}" for name, value in progress.valid.items())
                    bar.line(f"epoch {progress.epoch:.2f}  step {progress.step:,}  {scores}")
                return bool(asked)

            try:
                summary = verb.train(run, prepared, show, started)
            except Interrupted:
                print(f"stopped; the checkpoint is saved: go on with --resume ({run.run_folder})", file=sys.stderr)
                raise typer.Exit(128 + asked[0]) from None
    tables.print_run_summary(run, summary)
    if page:
        results.page(run.run_folder)


def _tune(run: RunConfig, resume: bool, extend: int, refit: bool, workers: int | None) -> RunConfig | None:
    """Runs a search; the run that is to follow it under `--refit`."""
    from txclf import ray_cluster
    from txclf.cli import tables
    from txclf.launch.preflight import require_shared
    from txclf.training.progress import Interrupted
    from txclf.tuning import tune as verb
    from txclf.tuning.callbacks import SearchState

    run = verb.open_folder(run, resume, extend)
    with ray_cluster.connected(run.compute):
        require_shared(run.storage)
        plan = verb.plan(run, lambda note: print(note, file=sys.stderr))
        with _signals() as asked, tables.SearchDisplay() as shown:

            def show(standing: SearchState) -> bool:
                shown.show(standing)
                return bool(asked)

            try:
                search = verb.tune(run, plan, show)
            except Interrupted:
                print(f"stopped; the trials are saved: go on with --resume ({run.run_folder})", file=sys.stderr)
                raise typer.Exit(128 + asked[0]) from None
        tables.print_search_summary(run, search)
    results.page(run.run_folder)
    return verb.refit_run(run, search, workers) if refit else None


@contextmanager
def _ray(run: RunConfig) -> Iterator[None]:
    """Connect to a Ray that has room for the run, if the run uses Ray."""
    if not run.compute.on_ray:
        yield
        return
    from txclf import ray_cluster

    with ray_cluster.connected(run.compute):
        ray_cluster.require(run.compute)
        yield


def _evaluate(run: str, data: list[str] | None = None, with_baseline: bool = True) -> None:
    from txclf.cli import console, tables
    from txclf.evaluation import evaluate as verb

    result = verb.evaluate(run, data, with_baseline)
    if "bleu" in result:
        console.table(
            f"Scores on {result['rows']:,} rows, {result['beams']} beams", ["", ""], tables.text_scores(result)
        )
        print(f"all of it: {os.path.join(run, verb.METRICS)}")
        return
    tables.label_scores(result)
    print(f"all of it: {os.path.join(run, verb.METRICS)}")


def _show_predictions(run: RunConfig) -> None:
    """Five test rows with what the model says of them."""
    from txclf import Classifier
    from txclf.cli import console
    from txclf.core import storage
    from txclf.data import shards

    prepared = storage.read_json(storage.join(run.run_folder, "summary.json"))["prepared"]
    manifest = shards.load_manifest(prepared)
    rows = shards.read_split(prepared, manifest, "test", ["text", "label"]).slice(0, 5).to_pylist()
    predictions = Classifier.load(storage.join(run.run_folder, "model"))([row["text"] for row in rows])
    console.table(
        "Five test rows",
        ["text", "label", "predicted", "probability"],
        [
            [
                " ".join(row["text"].split())[:60],
                manifest.labels[row["label"]],
                prediction.label,
                f"{prediction.probability:.2f}",
            ]
            for row, prediction in zip(rows, predictions, strict=True)
        ],
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that asked for a stop. The first is answered at the next step, a second one at once."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def handle(number: int, frame: object) -> None:
        if asked:
            raise SystemExit(128 + number)
        asked.append(number)

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        before[number] = signal.signal(number, handle)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _version(value: bool) -> None:
    if value:
        print(f"txclf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs a command. What a user can mend ends with one message and exit code 2."""
    gc.set_threshold(COLLECT_AFTER)
    try:
        app()
    except TxclfError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
