"""The command that serves a bundle. Heavy imports inside the command."""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import sys
from typing import Annotated

import typer

from txclf.cli.export import Model
from txclf.core.errors import ConfigError

TOKEN = "TXCLF_SERVE_TOKEN"
PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "watchfiles")

commands = typer.Typer()


@commands.command()
def serve(
    model: Model,
    host: Annotated[str, typer.Option("--host", help="Address to listen at; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: one that is free.")] = 8000,
    replicas: Annotated[
        int, typer.Option("--replicas", min=0, help="Copies of the model on Ray; 0: in this process, without Ray.")
    ] = 1,
    max_replicas: Annotated[
        int, typer.Option("--max-replicas", min=0, help="Autoscale up to this number of replicas; 0: fixed.")
    ] = 0,
    cpus_per_replica: Annotated[
        float, typer.Option("--cpus-per-replica", min=0.01, help="Of a replica, and its threads (rounded up).")
    ] = 1.0,
    gpus_per_replica: Annotated[
        float, typer.Option("--gpus-per-replica", min=0, help="Of a replica; 0.5 lets two share one.")
    ] = 0.0,
    max_batch_size: Annotated[
        int, typer.Option("--max-batch-size", min=1, help="Texts that a replica takes at once.")
    ] = 64,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=1, help="Requests that may wait; more are refused.")
    ] = 256,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for a request.")] = 30.0,
    max_texts: Annotated[int, typer.Option("--max-texts", min=1, help="Texts in a request.")] = 256,
    max_characters: Annotated[int, typer.Option("--max-characters", min=1, help="Of a text.")] = 100_000,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1, help="Of a request's body.")] = 1 << 20,
    token_file: Annotated[
        str | None, typer.Option("--token-file", help=f"File with the token to ask for; or set {TOKEN}.")
    ] = None,
    address: Annotated[str | None, typer.Option("--address", help="Of a Ray cluster: `auto` or host:port.")] = None,
) -> None:
    """Answer HTTP requests with a model: JSON, a page to try it, metrics; Ctrl-C ends it once all are answered."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"serving needs the package `{missing[0]}`: pip install 'txclf[serve]'")
    token = _token(token_file)
    if max_replicas and max_replicas < max(replicas, 1):
        raise ConfigError(f"--max-replicas {max_replicas}: expected at least --replicas ({replicas})")
    if replicas == 0 and (max_replicas or address):
        raise ConfigError("--replicas 0 serves in this process: it goes with neither --max-replicas nor --address")
    if token is None and not _loopback(host):
        print(f"anyone who reaches {host} can ask: set a token (--token-file or {TOKEN})", file=sys.stderr)
    from txclf.serving import serve as verb
    from txclf.serving.middleware import Limits

    settings = verb.Settings(
        host=host,
        port=port,
        replicas=replicas,
        max_replicas=max_replicas,
        cpus_per_replica=cpus_per_replica,
        gpus_per_replica=gpus_per_replica,
        max_batch_size=max_batch_size,
        max_queue=max_queue,
        address=address,
        limits=Limits(body_bytes=max_bytes, texts=max_texts, characters=max_characters, seconds=timeout),
        token=token,
    )

    def show(started: verb.Started) -> None:
        many = "in this process" if replicas == 0 else f"{replicas} replica{'s' * (replicas > 1)}"
        many += f", up to {max_replicas}" if max_replicas > replicas else ""
        print(f"serving `{model}` at {started.url} ({many}, {started.seconds:.1f} s); Ctrl-C ends it")
        print(f"  {_curl(started.url, started.text_columns, token is not None)}", flush=True)

    if not verb.serve(model, settings, show):
        print("ended at once; open requests were not answered", file=sys.stderr)
        raise typer.Exit(130)
    print("ended; every request was answered")


def _token(path: str | None) -> str | None:
    """Never from the command line, where every user of the machine could read it."""
    if path is None:
        token = os.environ.get(TOKEN)
        where = f"`{TOKEN}`"
    else:
        where = f"--token-file {path}"
        try:
            with open(path, encoding="utf-8") as file:
                token = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if token is None:
        return None
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: expected a token of printable ASCII characters without spaces")
    return token


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _curl(url: str, columns: list[str], token: bool) -> str:
    """A call that can be pasted into a shell."""
    body = {"text": "some text"} if len(columns) == 1 else {"rows": [dict.fromkeys(columns, "some text")]}
    header = f' -H "Authorization: Bearer ${TOKEN}"' if token else ""
    data = json.dumps(body).replace("'", "'\\''")
    return f"curl {url}/predict -H 'Content-Type: application/json'{header} -d '{data}'"
