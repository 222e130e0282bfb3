"""Command that serves a bundle over HTTP: serve."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import Annotated

import typer

from txclf.cli import lines
from txclf.cli.commands import Commands
from txclf.cli.export import Model
from txclf.core.errors import ConfigError

TOKEN = "TXCLF_SERVE_TOKEN"
"""Environment variable with the bearer token."""

commands = Commands()


@commands.command()
def serve(
    model: Model,
    *,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 listens on all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="TCP port; 0 selects a free one.")] = 8000,
    replicas: Annotated[
        int,
        typer.Option("--replicas", min=0, help="Copies of the model on Ray; 0 runs it in this process, without Ray."),
    ] = 0,
    max_replicas: Annotated[
        int, typer.Option("--max-replicas", min=0, help="Upper bound of autoscaling; 0 disables it.")
    ] = 0,
    cpus_per_replica: Annotated[
        float,
        typer.Option("--cpus-per-replica", min=0.01, help="CPUs per replica; rounded up, also its number of threads."),
    ] = 1.0,
    gpus_per_replica: Annotated[
        float, typer.Option("--gpus-per-replica", min=0, help="GPUs per replica; 0.5 lets two replicas share one.")
    ] = 0.0,
    max_batch_size: Annotated[
        int, typer.Option("--max-batch-size", min=1, help="Maximum number of rows per batch of a replica.")
    ] = 64,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=1, help="Maximum number of queued requests; more are refused.")
    ] = 256,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Maximum time of a request in seconds.")] = 30.0,
    max_texts: Annotated[int, typer.Option("--max-texts", min=1, help="Maximum number of rows per request.")] = 256,
    max_characters: Annotated[
        int, typer.Option("--max-characters", min=1, help="Maximum length of a text in characters.")
    ] = 100_000,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1, help="Maximum size of a request's body in bytes.")] = 1
    << 20,
    max_connections: Annotated[
        int, typer.Option("--max-connections", min=1, help="Maximum number of connections; more are refused.")
    ] = 1024,
    token_file: Annotated[
        str | None, typer.Option("--token-file", help=f"File with the bearer token of requests; or set {TOKEN}.")
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option("--example", help="Text that the page offers to try; repeat it for several texts."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Name of the service that requests may use; repeat it for several names."),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster to join: `auto` or `host:port`.")
    ] = None,
) -> None:
    """Serve a model over HTTP: a JSON API, a web page and Prometheus metrics.

    Ctrl-C answers the open requests and then ends the service.
    """
    from txclf.serving.settings import Limits, Settings, require_packages

    require_packages()
    token = _token(token_file)
    settings = Settings(
        host=host,
        port=port,
        replicas=replicas,
        max_replicas=max_replicas,
        cpus_per_replica=cpus_per_replica,
        gpus_per_replica=gpus_per_replica,
        max_batch_size=max_batch_size,
        max_queue=max_queue,
        address=address,
        limits=Limits(
            body_bytes=max_bytes,
            texts=max_texts,
            characters=max_characters,
            seconds=timeout,
            connections=max_connections,
        ),
        token=token,
        examples=tuple(example or ()),
        allowed_hosts=tuple(allowed_host or ()),
    )
    lines.note(f"loading `{model}`{f' into {replicas} replica(s) on Ray' if replicas else ''}")
    from txclf.serving import serve as service
    from txclf.serving.origins import is_loopback

    if token is None and not is_loopback(host):
        lines.err(
            f"--host {host}: everyone on the network can send requests. Set a token with --token-file or {TOKEN}."
        )

    def show(started: service.Started) -> None:
        where = "in this process" if replicas == 0 else f"{replicas} replica{'s' * (replicas > 1)}"
        where += f", up to {max_replicas}" if max_replicas > replicas else ""
        lines.out(f"serving `{model}` at {started.url} ({where}, {started.seconds:.1f} s); Ctrl-C ends it")
        secret = token and (f"$(cat {shlex.quote(token_file)})" if token_file else f"${TOKEN}")
        lines.out(f"  {_curl(started.url, started.text_columns, secret)}")

    if not service.serve(model, settings, show):
        lines.err("ended; open requests were not answered")
        sys.stderr.flush()
        os._exit(130)  # the interpreter would wait for the batch that the model computes
    lines.out("ended; every request was answered")


def _token(path: str | None) -> str | None:
    """Return the bearer token of the file at `path`, or of the environment, or None.

    It is no option of its own, because every user of the machine can read a command line.
    """
    if path is None:
        token = os.environ.get(TOKEN)
        where = f"`{TOKEN}`"
    else:
        where = f"--token-file {path}"
        try:
            with open(path, encoding="utf-8") as file:
                token = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}. Pass a readable text file."
            ) from None
    if token is None:
        return None
    from txclf.serving.settings import require_token

    return require_token(token.strip(), where)


def _curl(url: str, columns: list[str], secret: str | None) -> str:
    """Return an example request to this machine as a shell command. `secret` is the token in words of the shell."""
    body = {"text": "some text"} if len(columns) == 1 else {"rows": [dict.fromkeys(columns, "some text")]}
    header = f' -H "Authorization: Bearer {secret}"' if secret else ""
    data = json.dumps(body).replace("'", "'\\''")
    url = url.replace("://0.0.0.0:", "://127.0.0.1:").replace("://[::]:", "://[::1]:")
    return f"curl {url}/predict -H 'Content-Type: application/json'{header} -d '{data}'"
