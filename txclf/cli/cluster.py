"""The commands that talk to a Ray cluster: check, submit, jobs. Heavy imports inside the commands."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

RunFile = Annotated[str, typer.Argument(metavar="RUN.yaml", help="The run file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]…", help="Settings over the run file's, as in `train.epochs=5`."),
]
Address = Annotated[
    str, typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="The dashboard, as http://head:8265.")
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as `submit` printed it.", show_default=False)]

commands = typer.Typer()
jobs = typer.Typer(help="Jobs on a cluster: list, status, logs, stop.", no_args_is_help=True)
commands.add_typer(jobs, name="jobs")


@commands.command()
def check(run_file: RunFile, words: Overrides = None) -> None:
    """Ask every node of the cluster whether a run would get what it needs there; exit code 1 if not."""
    from contextlib import nullcontext

    from txclf.cli import console
    from txclf.config import run_config as settings
    from txclf.launch import preflight as verb

    run = settings.load(run_file, words or [])
    if run.compute.on_ray:
        from txclf import ray_cluster
    with ray_cluster.connected(run.compute) if run.compute.on_ray else nullcontext():
        findings = verb.check(run)
    for finding in findings:
        line = f"{finding.status}  {finding.what}: {finding.found}"
        console.out.print(line + (f" -> {finding.advice}" if finding.advice else ""), markup=False)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


@commands.command(context_settings={"ignore_unknown_options": True})
def submit(
    address: Address,
    verb: Annotated[str, typer.Argument(metavar="VERB", help="train, tune, prepare, evaluate, predict or check.")],
    words: Annotated[list[str], typer.Argument(metavar="WORD…", help="All else that the command takes.")],
    wait: Annotated[bool, typer.Option(help="Whether to follow the log to the end.")] = True,
) -> None:
    """Run a command on a Ray cluster, as a job: `txclf submit train RUN.yaml storage=/shared/runs`."""
    from txclf.launch import jobs as verbs

    job = verbs.submit(address, verb, words)
    print(f"job {job}: txclf jobs logs {job} --address {address}", file=sys.stderr)
    if wait:
        _follow(address, job)


@jobs.command(name="list")
def list_jobs(address: Address) -> None:
    """All jobs of txclf on the cluster, the newest first."""
    from txclf.cli import console
    from txclf.launch import jobs as verbs

    known = [job for job in verbs.connect(address).list_jobs() if "run" in (job.metadata or {})]
    known.sort(key=lambda job: -(job.start_time or 0))
    rows = [[job.submission_id, job.metadata["verb"], job.metadata["run"], job.status.value.lower()] for job in known]
    console.table("Jobs", ["job", "verb", "run", "state"], rows)


@jobs.command()
def status(job: Job, address: Address) -> None:
    """The state of a job: pending, running, succeeded, failed or stopped."""
    from txclf.launch import jobs as verbs

    print(verbs.status(verbs.connect(address), job))


@jobs.command()
def logs(job: Job, address: Address) -> None:
    """Follow the log of a job to its end; the exit code is the job's."""
    _follow(address, job)


@jobs.command()
def stop(job: Job, address: Address) -> None:
    """Stop a job: it saves a checkpoint, and `--resume` goes on from there."""
    from txclf.launch import jobs as verbs

    client = verbs.connect(address)
    verbs.status(client, job)
    client.stop_job(job)
    print(f"{job} is asked to stop")


def _follow(address: str, job: str) -> None:
    from txclf.launch import jobs as verbs

    client = verbs.connect(address)
    verbs.status(client, job)
    try:
        code = verbs.follow(client, job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        if sys.stdin.isatty() and typer.confirm(f"\nstop job {job} too? (else it goes on)", default=False, err=True):
            client.stop_job(job)
            print(f"{job} is asked to stop", file=sys.stderr)
        else:
            print(f"job {job} goes on: txclf jobs logs {job} --address {address}", file=sys.stderr)
        raise typer.Exit(130) from None
    if code:
        raise typer.Exit(code)
