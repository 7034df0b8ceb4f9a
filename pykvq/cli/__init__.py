"""The `pykvq` command: one file per verb. Heavy libraries are imported by the verbs that need them."""

from __future__ import annotations

import io
import sys
from typing import cast

import typer

from .. import errors
from . import common
from .bench import bench
from .chat import chat
from .convert import convert
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

app = typer.Typer(
    help="Run GGUF language models with a compressed KV cache.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (generate, chat, models, pull, info, tokenize, convert, quantize, imatrix, kv, plan, bench, plot):
    app.command()(verb)
app.command("eval")(evaluate)


@app.callback(invoke_without_command=True)
def version(
    show: bool = typer.Option(False, "--version", help="Print the version and leave.", is_eager=True),
) -> None:
    """Run GGUF language models with a compressed KV cache."""
    if show:
        from .. import __version__

        print(f"pykvq {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line: exit code 0, 1 after an error, 2 after a wrong usage, 130 after Ctrl-C."""
    cast(io.TextIOWrapper, sys.stdout).reconfigure(
        errors="replace"
    )  # a terminal that is not UTF-8 shows "?" for what it lacks
    try:
        app(prog_name="pykvq")
    except errors.PykvqError as error:
        if common.debug:
            raise
        sys.exit(f"pykvq: {error}")
    except Exception as error:
        if common.debug:
            raise
        sys.exit(f"pykvq: internal error: {type(error).__name__}: {error} (--debug shows where; please report it)")
