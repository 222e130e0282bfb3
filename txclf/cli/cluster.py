"""Commands for a Ray cluster: check, submit, jobs."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from txclf.cli import completion, lines
from txclf.cli.commands import Commands, Json
from txclf.launch.verbs import RUN_FILE_FOLDER, VERBS

RunFile = Annotated[str, typer.Argument(metavar="RUN.yaml", help="Run file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that replace those of the run file, such as `train.epochs=5`.",
        autocompletion=completion.overrides,
    ),
]
Address = Annotated[
    str,
    typer.Option(
        "--address", envvar="RAY_API_SERVER_ADDRESS", help="URL of the Ray dashboard, such as http://head:8265."
    ),
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="Job id, as `submit` prints it.", show_default=False)]

commands = Commands()
jobs = Commands(help="List, follow and stop jobs on a cluster.", no_args_is_help=True)
commands.add_typer(jobs, name="jobs")


def suggest_training(run_file: str, overrides: list[str] | None) -> None:
    """Print the command that trains a run file, but not in a job, whose user has the file elsewhere."""
    if not run_file.startswith(f"{RUN_FILE_FOLDER}/"):
        lines.next_steps(" ".join(["txclf train", *map(shlex.quote, [run_file, *(overrides or [])])]))


@commands.command()
def check(run_file: RunFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check that every node of the cluster can execute a run, or without `compute.workers` this machine.

    The exit code is 1 if one of them cannot.
    """
    lines.note(f"checking {run_file}")
    from contextlib import nullcontext

    from txclf.config import run_config
    from txclf.launch import preflight as verb

    run = run_config.load(run_file, overrides or [])
    if run.compute.on_ray:
        from txclf import ray_cluster
    with ray_cluster.connected(run.compute) if run.compute.on_ray else nullcontext():
        findings = verb.check(run)
    for finding in findings:
        advice = f" -> {finding.advice}" if finding.advice else ""
        lines.out(f"{finding.status}  {finding.what}: {finding.found}{advice}")
    failed = any(finding.status == "fail" for finding in findings)
    if as_json:
        lines.result({"passed": not failed, "findings": [finding._asdict() for finding in findings]})
    if failed:
        raise typer.Exit(1)
    suggest_training(run_file, overrides)


@commands.command(context_settings={"ignore_unknown_options": True})
def submit(
    address: Address,
    command: Annotated[
        str,
        typer.Argument(
            metavar="COMMAND", help=f"{', '.join(VERBS[:-1])} or {VERBS[-1]}.", autocompletion=lambda: list(VERBS)
        ),
    ],
    arguments: Annotated[list[str], typer.Argument(metavar="ARGUMENT", help="Arguments and options of that command.")],
    wait: Annotated[bool, typer.Option(help="Follow the log until the job ends.")] = True,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="NAME",
            help="File or glob to send although it looks like a secret or is a link out of the folder.",
        ),
    ] = None,
) -> None:
    """Run a command as a job on a Ray cluster: `txclf submit train RUN.yaml storage=/shared/runs`."""
    from txclf.launch import jobs as launch_jobs

    job = launch_jobs.submit(address, command, arguments, allowed=allow or ())
    lines.err(f"job {job}: txclf jobs logs {job} --address {address}")
    if wait:
        _follow(address, job)


@jobs.command(name="list")
def list_jobs(address: Address, as_json: Json = False) -> None:
    """List all txclf jobs on the cluster, newest first."""
    from txclf.cli import console
    from txclf.launch import jobs as launch_jobs

    known = [job for job in launch_jobs.connect(address).list_jobs() if "run" in (job.metadata or {})]
    known.sort(key=lambda job: -(job.start_time or 0))
    names = ["job", "command", "run", "state"]
    rows = [[job.submission_id, job.metadata["verb"], job.metadata["run"], job.status.value.lower()] for job in known]
    console.table("Jobs", names, rows)
    if as_json:
        lines.result({"jobs": [dict(zip(names, row, strict=True)) for row in rows]})
    lines.next_steps("txclf jobs logs JOB" if rows else "txclf submit train RUN.yaml storage=/shared/runs")


@jobs.command()
def status(job: Job, address: Address) -> None:
    """Print the state of a job: pending, running, succeeded, failed or stopped."""
    from txclf.launch import jobs as launch_jobs

    lines.out(launch_jobs.status(launch_jobs.connect(address), job))


@jobs.command()
def logs(job: Job, address: Address) -> None:
    """Follow the log of a job until it ends, and exit with the job's exit code."""
    _follow(address, job)


@jobs.command()
def stop(job: Job, address: Address) -> None:
    """Stop a job. A run saves a checkpoint, from which `--resume` continues."""
    from txclf.launch import jobs as launch_jobs

    client = launch_jobs.connect(address)
    launch_jobs.status(client, job)
    client.stop_job(job)
    lines.out(f"job {job} was asked to stop")


def _follow(address: str, job: str) -> None:
    """Print the log of a job until it ends. Ctrl-C asks on a terminal if the job is to be stopped too."""
    from txclf.launch import jobs as launch_jobs

    client = launch_jobs.connect(address)
    launch_jobs.status(client, job)
    try:
        code = launch_jobs.follow(client, job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        if sys.stdin.isatty() and typer.confirm(
            f"\nstop job {job} too? (if not, it keeps running)", default=False, err=True
        ):
            client.stop_job(job)
            lines.err(f"job {job} was asked to stop")
        else:
            lines.err(f"job {job} keeps running: txclf jobs logs {job} --address {address}")
        raise typer.Exit(130) from None
    if code:
        raise typer.Exit(code)
