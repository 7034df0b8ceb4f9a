"""The `pykvq` command: one file per verb. Heavy libraries are imported by the verbs that need them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any, cast

import typer

from .. import errors
from . import config, options
from .bench import bench
from .chat import chat
from .convert import convert
from .doctor import doctor
from .eval import evaluate
from .generate import generate
from .imatrix import imatrix
from .info import info
from .kv import kv
from .models import models
from .plan import plan
from .plot import plot
from .pull import pull
from .quantize import quantize
from .tokenize import tokenize

_HELP = "Run GGUF language models with a compressed KV cache."
_VERBS: dict[str, list[Callable[..., None]]] = {
    "Use a model": [chat, generate],
    "Find a model": [models, pull, info, tokenize],
    "Choose a KV type": [kv, plan, evaluate, bench, plot],
    "Make a model": [convert, imatrix, quantize],
    "Look after it": [doctor],
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="[dim]pykvq VERB --help shows examples. Defaults may stand in a file: pykvq doctor tells where.[/]",
)


def _examples(verb: Callable[..., None]) -> str:
    """The examples of a verb's file as an epilog, whose lines are paragraphs."""
    lines = cast(str, cast(Any, sys.modules[verb.__module__]).EXAMPLES).strip().splitlines()
    shown = ["[bold]Examples[/]"]
    for line in lines:
        command, _, comment = line.replace("[", r"\[").partition("  # ")
        shown.append(f"{command}  [dim]# {comment}[/]" if comment else command)
    return "\n\n".join(shown)


for _panel, _verbs in _VERBS.items():
    for _verb in _verbs:
        _name = "eval" if _verb is evaluate else _verb.__name__
        app.command(_name, rich_help_panel=_panel, epilog=_examples(_verb))(_verb)


@app.callback(invoke_without_command=True, help=_HELP)
def defaults(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave.", is_eager=True),
) -> None:
    """Before any verb: its defaults from the user's file."""
    if version:
        from .. import __version__

        print(f"pykvq {__version__}")
        raise typer.Exit
    verb = context.invoked_subcommand
    if verb is not None and verb != "doctor":  # which tells what is wrong with the file
        context.default_map = {verb: config.defaults(context, verb)}


def main() -> None:
    """Run the command line: exit code 0, 1 after an error, 2 after a wrong usage, 130 after Ctrl-C."""
    cast(io.TextIOWrapper, sys.stdout).reconfigure(
        errors="replace"
    )  # a terminal that is not UTF-8 shows "?" for what it lacks
    try:
        app(prog_name="pykvq")
    except errors.PykvqError as error:
        if options.debug:
            raise
        sys.exit(f"pykvq: {config.blame(str(error))}")
    except Exception as error:
        if options.debug:
            raise
        sys.exit(f"pykvq: internal error: {type(error).__name__}: {error} (--debug shows where; please report it)")
