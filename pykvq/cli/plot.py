"""`pykvq plot`: pictures of result files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import common, options

EXAMPLES = """
pykvq eval smollm2 --save quality.jsonl
pykvq plot quality.jsonl --output pictures
"""
_FORMATS = ("svg", "png", "pdf")


def plot(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="What --save of `eval` and `bench` wrote, or tools/bench/h200_model.json.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the pictures.")] = Path(),
    format: Annotated[str, typer.Option(help=f"{', '.join(_FORMATS)}.", autocompletion=lambda: _FORMATS)] = "svg",
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw quality against bits, speed and memory against context, and needle maps.

    Needs pip install 'pykvq\\[plot]'.
    """
    common.choose(format, _FORMATS, "--format")

    from ..plots import plot as draw
    from ..results import read_rows

    paths = draw([row for file in files for row in read_rows(file)], output, format)
    if json:
        from json import dumps

        print(dumps({"files": [str(path) for path in paths]}))
    else:
        print(*paths, sep="\n")
