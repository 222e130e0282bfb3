"""Groups of commands with the options that every command has: -h, -q and -v."""

from __future__ import annotations

import functools
import inspect
import logging
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import typer
import typer.core

from txclf.cli import lines
from txclf.core.errors import TxclfError

Function = TypeVar("Function", bound=Callable[..., Any])
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and all else on standard error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print logs, tracebacks and the time too.")]

HELP_OPTIONS = ["-h", "--help"]


class Commands(typer.Typer):
    """Commands that all have the options `-q` and `-v`. A command with a parameter `as_json` has `--json` too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, context_settings={"help_option_names": HELP_OPTIONS}, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """Register a function as a command and return it unchanged."""
        register = super().command(name, cls=_Command, **settings)

        def registered(function: Function) -> Function:
            register(_with_modes(function))
            return function

        return registered


def _with_modes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the parameters `quiet` and `verbose` too, which sets what the command prints."""

    @functools.wraps(function)
    def run(*arguments: Any, quiet: bool = False, verbose: bool = False, **options: Any) -> Any:
        lines.mode = lines.Mode(quiet, verbose, as_json=bool(options.get("as_json")))
        if verbose:
            logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", level=logging.INFO)
        started = time.monotonic()
        try:
            return function(*arguments, **options)
        except TxclfError:
            if verbose:
                traceback.print_exc()
            raise
        finally:
            if verbose:
                lines.err(f"time: {time.monotonic() - started:.1f} s")
            lines.mode = lines.Mode()

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("quiet", Quiet), ("verbose", Verbose))
    ]
    own = inspect.signature(function, eval_str=True)
    signature = own.replace(parameters=[*own.parameters.values(), *added])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return run


class _Command(typer.core.TyperCommand):
    """Command whose help shows the values that options take, and no Python types."""

    def get_params(self, ctx: Any) -> Any:
        return _plain(super().get_params(ctx), ctx)


class _Group(typer.core.TyperGroup):
    """Group of commands with such a help."""

    def get_params(self, ctx: Any) -> Any:
        return _plain(super().get_params(ctx), ctx)


def _plain(parameters: Iterable[Any], context: Any) -> list[Any]:
    """Set what the help shows as the value of each parameter: nothing for a flag and an argument."""
    shown = list(parameters)
    for parameter in shown:
        if isinstance(parameter, typer.core.TyperArgument):
            parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
        elif parameter.metavar is None:
            is_number = "<int" in (kind := parameter.display_type(context)) or "<float" in kind
            parameter.metavar = "" if parameter.is_flag else "NUMBER" if is_number else "TEXT"
    return shown
