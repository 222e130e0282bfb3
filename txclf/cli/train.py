"""Commands that make a model: config, prepare, train, distill, tune, evaluate."""

from __future__ import annotations

import os
import shlex
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from txclf.cli import lines, results
from txclf.cli.cluster import Overrides, RunFile, suggest_training
from txclf.cli.commands import Commands, Json
from txclf.core import text
from txclf.core.errors import ConfigError
from txclf.core.signals import stop_signals

if TYPE_CHECKING:
    from txclf.config.run_config import RunConfig
    from txclf.config.sections import Compute
    from txclf.training.progress import Progress
    from txclf.training.train import RunSummary
    from txclf.tuning.callbacks import SearchState
    from txclf.tuning.tune import Search

commands = Commands()


@commands.command()
def config(
    run_file: Annotated[
        str | None, typer.Argument(metavar="RUN.yaml", help="Run file; without one, the defaults.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of run files, for editors, instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a run file and print its keys with their values, without those that follow from the rows."""
    from txclf.config import recipes, run_config

    if run_file and "=" in run_file and not os.path.exists(run_file):
        overrides = [run_file, *(overrides or [])]
        run_file = None
    if schema:
        print(run_config.schema())
        return
    run = run_config.load(run_file, overrides or [])
    if as_json:
        lines.result(recipes.set_keys(run, mode="json"))
    else:
        print(run_config.dump(run), end="")


@commands.command()
def prepare(run_file: RunFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Turn raw labelled files into token shards, a tokenizer and an audit."""
    from txclf.config import run_config

    folder = prepare_run(run_config.load(run_file, overrides or []))
    if as_json:
        from txclf.reports import inspect

        lines.result(inspect.inspect(folder))
    suggest_training(run_file, overrides)


@commands.command()
def train(
    run_file: RunFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    limit: Annotated[
        str | None,
        typer.Option("--time", metavar="10m", help="Search for so long among kinds of models, and bundle the best."),
    ] = None,
    encoders: Annotated[
        str | None,
        typer.Option(envvar="TXCLF_ENCODERS", help="With --time: folder of pretrained encoders that are tried too."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prepare the data if necessary, train, and bundle the best model."""
    started = time.time()
    from txclf.artifacts import run_names
    from txclf.config import run_config

    unnamed = run_config.load(run_file, overrides or [])
    if limit is None:
        if encoders is not None and not os.environ.get("TXCLF_ENCODERS"):
            raise ConfigError("--encoders: only a search tries several encoders. Add --time, as in `--time 10m`.")
        with run_names.named(unnamed, run_file, resume) as run:
            _print_json(run, train_run(run, resume=resume, started=started))
        return
    with run_names.named(unnamed, run_file, resume, is_search=True) as run:
        lines.note(f"searching for {limit}, into `{run.run_folder}`")
        from txclf.tuning import race

        search = race.search(run, limit, encoders, lines.note)
        _print_json(search, tune_run(search, resume=resume, extend=0))


@commands.command()
def distill(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="Bundle of the teacher, RUN/model.", show_default=False)
    ],
    run_file: RunFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model on the answers of a larger one, as `train` with `distill.teacher=TEACHER`."""
    started = time.time()
    from txclf.artifacts import run_names
    from txclf.config import run_config

    unnamed = run_config.load(run_file, overrides or [])
    with run_names.named(unnamed, run_file, resume) as run:
        run = run_config.with_overrides(run, {"distill.teacher": teacher})
        _print_json(run, train_run(run, resume=resume, started=started))


@commands.command()
def tune(
    run_file: RunFile,
    overrides: Overrides = None,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted search.")] = False,
    extend: Annotated[int, typer.Option("--extend", min=0, help="Number of trials to add to a search.")] = 0,
    refit: Annotated[
        bool, typer.Option("--refit", help="Train the winner on training and validation rows afterwards.")
    ] = False,
    refit_workers: Annotated[
        int | None,
        typer.Option("--refit-workers", min=0, help="Workers of --refit instead of the run file's; implies --refit."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Search hyperparameters: train trials, stop the poor ones early, and bundle the best model."""
    from txclf.artifacts import run_names
    from txclf.config import run_config

    unnamed = run_config.load(run_file, overrides or [])
    with run_names.named(unnamed, run_file, resume or extend > 0, is_search=True) as run:
        _tune_and_refit(run, resume, extend, refit, refit_workers)


def _tune_and_refit(run: RunConfig, resume: bool, extend: int, refit: bool, refit_workers: int | None) -> None:
    """Run a search, train its winner again if that is asked for, and print both as JSON."""
    from txclf.core import storage

    refits = refit or refit_workers is not None
    winner = tune_run(run, resume=resume, extend=extend, is_part=refits)
    refit_summary = None
    if refits:
        from txclf.tuning.refit import refit_run

        refitted = refit_run(run, winner, refit_workers)
        begun = storage.exists(storage.join(refitted.run_folder, "run.yaml"))
        refit_summary = train_run(refitted, resume=begun, started=time.time(), is_refit=True)
    _print_json(run, winner, **({"refit": refit_summary.model_dump(mode="json")} if refit_summary else {}))


@commands.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Labelled files to score instead of the test split.")
    ] = None,
    *,
    baseline: Annotated[bool, typer.Option(help="Also train and score the baselines.")] = True,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Ray workers; 0 scores in this process, without Ray.")
    ] = 0,
    cpus: results.CpusPerWorker = None,
    gpus: results.GpusPerWorker = None,
    address: results.Address = None,
    as_json: Json = False,
) -> None:
    """Score a run on its test split, next to the majority class and an n-gram linear model."""
    from txclf.config import run_config

    compute = run_config.worker_compute(workers, {"cpus_per_worker": cpus, "gpus_per_worker": gpus, "address": address})
    with results.connected_workers(compute, run):
        scores = evaluate_run(run, data, with_baseline=baseline, compute=compute)
    results.write_report(run)
    results.print_advice(run)
    lines.next_steps(_predict_command(run))
    if as_json:
        lines.result(scores)


def _print_json(run: RunConfig, summary: RunSummary | Search, **more: Any) -> None:
    """Print the summary of a run or a search as JSON, with its folder, if JSON is asked for."""
    if lines.mode.as_json:
        from txclf.core import storage

        folder = run.run_folder
        places = {"name": run.name, "run_folder": folder, "model": storage.join(folder, "model")}
        lines.result({**places, **summary.model_dump(mode="json"), **more})


def prepare_run(run: RunConfig) -> str:
    """Prepare the data of a run, print an overview, and return the prepared folder."""
    lines.note(f"preparing {text.listed(run.data.train or [])}")
    from txclf.cli import console, tables
    from txclf.data import prepare as verb
    from txclf.data import shards
    from txclf.launch import preflight

    started = time.monotonic()
    with preflight.connected(run.compute, run.storage), console.Bar("preparing") as bar:
        folder = verb.prepare(run, lambda stage, rows: bar.update(rows, None, "rows", stage))
    tables.print_data_summary(run, folder, shards.load_manifest(folder), time.monotonic() - started)
    return folder


def train_run(
    run: RunConfig,
    *,
    resume: bool,
    started: float,
    with_report: bool = True,
    is_part: bool = False,
    is_refit: bool = False,
) -> RunSummary:
    """Train a run, print its summary and return it; the first stop signal saves a checkpoint and ends the command.

    `started` is the wall-clock time at which the command began. A finished run is only summarized. Without
    `with_report` no report is written and no command that can follow is printed. A run that is part of
    another command has neither, nor a summary, and that command continues it when it is run again.
    """
    lines.note(f"run `{run.name}` into `{run.run_folder}`")
    from txclf.launch import local_workers

    with local_workers.forked(run.compute):  # before the imports that take seconds
        options = {"with_report": with_report, "is_part": is_part, "is_refit": is_refit}
        return _train_run(run, resume=resume, started=started, **options)


def _train_run(
    run: RunConfig, *, resume: bool, started: float, with_report: bool, is_part: bool, is_refit: bool
) -> RunSummary:
    from txclf.cli import console, displays, tables
    from txclf.launch import preflight
    from txclf.training import train as verb
    from txclf.training.precision import choose_precision, uses_gpu
    from txclf.training.progress import Interrupted

    finished = verb.check_folder(run, resume, is_refit=is_refit)
    if finished:
        lines.out(f"`{run.run_folder}` is already finished")
        if not is_part:
            tables.print_run_summary(run, finished)
        if with_report and not is_part:
            lines.next_steps(*_after_training(run))
        return finished
    with preflight.connected(run.compute, run.storage):
        prepared = verb.recorded_data(run) or prepare_run(run)
        if not run.compute.on_ray:
            precision, reason = choose_precision(run.train.precision, uses_gpu(run.compute))
            lines.out(f"precision {precision}: {reason}")
        with stop_signals() as signals, console.Bar("training") as bar:
            display = displays.TrainingDisplay(bar)

            def show(progress: Progress) -> bool:
                display.show(progress)
                return bool(signals.received)

            try:
                summary = verb.train(run, prepared, show, started)
            except Interrupted:
                how = "Run the command again" if is_part else "Pass --resume"
                lines.err(f"`{run.run_folder}`: stopped, and the checkpoint is saved. {how} to continue.")
                raise typer.Exit(signals.exit_code) from None
            if is_part and signals.received:  # while the model was bundled: the other parts do not begin
                raise typer.Exit(signals.exit_code)
    if not is_part:
        tables.print_run_summary(run, summary)
    if with_report and not is_part:
        results.write_report(run.run_folder)
        results.print_advice(run.run_folder)
        lines.next_steps(*_after_training(run))
    return summary


def _after_training(run: RunConfig) -> list[str]:
    """Return the commands that can follow a finished run or search."""
    from txclf.evaluation.evaluate import has_test_split

    files = "" if has_test_split(run.run_folder) else " --data FILE"
    return [
        f"txclf evaluate {shlex.quote(run.run_folder)}{files}",
        _predict_command(run.run_folder),
    ]


def _predict_command(folder: str) -> str:
    """Return a command that predicts with the bundle of a run or search: of one text, unless it reads several."""
    from txclf.config import run_config
    from txclf.core import storage

    columns = run_config.load(storage.join(folder, "run.yaml")).data.text
    rows = '--text "some text"' if len(columns) == 1 else "INPUT --out predictions.csv"
    return f"txclf predict {shlex.quote(storage.join(folder, 'model'))} {rows}"


def tune_run(run: RunConfig, *, resume: bool, extend: int, is_part: bool = False) -> Search:
    """Run a search, print its summary and return it; the first stop signal saves the trials and ends the command.

    After a search that is part of the command a signal ends it too, also if it came too late for the trials.
    """
    lines.note(f"search `{run.name}` into `{run.run_folder}`")
    from txclf.launch import local_workers

    with local_workers.forked(run.compute, always=True):  # before the imports that take seconds
        return _tune_run(run, resume=resume, extend=extend, is_part=is_part)


def _tune_run(run: RunConfig, *, resume: bool, extend: int, is_part: bool) -> Search:
    from txclf.cli import displays, tables
    from txclf.launch import preflight
    from txclf.training.progress import Interrupted
    from txclf.tuning import tune as verb

    with (
        verb.opened(run, resume, extend) as run,
        preflight.connected(run.compute, run.storage, searches=True),
    ):
        plan = verb.plan(run, lines.note)
        with stop_signals() as signals, displays.SearchDisplay() as display:

            def show(state: SearchState) -> bool:
                display.show(state)
                return bool(signals.received)

            try:
                search = verb.tune(run, plan, show)
            except Interrupted:
                lines.err(f"`{run.run_folder}`: stopped, and the trials are saved. Pass --resume to continue.")
                raise typer.Exit(signals.exit_code) from None
        tables.print_search_summary(run, search)
        if is_part and signals.received:  # while the model was bundled: the refit does not begin
            raise typer.Exit(signals.exit_code)
    results.write_report(run.run_folder)
    lines.next_steps(*_after_training(run))
    return search


def evaluate_run(
    run: str, data: list[str] | None = None, *, with_baseline: bool = True, compute: Compute | None = None
) -> dict[str, Any]:
    """Score a run folder, print the scores and return them."""
    lines.note(f"scoring `{run}` on {text.listed(data) if data else 'its test split'}")
    from txclf.cli import tables
    from txclf.evaluation import evaluate as verb

    scores = verb.evaluate(run, data, with_baseline, compute)
    tables.print_scores(scores)
    lines.out(f"all scores: {os.path.join(run, verb.metrics_file(data))}")
    return scores
