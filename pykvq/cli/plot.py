"""`pykvq plot`: pictures of result files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import DebugOption


def plot(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="What --save of `eval` and `bench` wrote.")],
    folder: Annotated[Path, typer.Option("--out", help="Where the pictures go.")] = Path(),
    suffix: Annotated[str, typer.Option("--format", help="svg, png or pdf.")] = "svg",
    debug: DebugOption = False,
) -> None:
    """Draw quality against bits, speed and memory against context, and needle maps. Needs pip install 'pykvq[plot]'."""
    if suffix not in ("svg", "png", "pdf"):
        raise typer.BadParameter(f"--format {suffix}: expected svg, png or pdf")

    from ..plots import plot as draw
    from ..results import read_rows

    for path in draw([row for file in files for row in read_rows(file)], folder, suffix):
        print(path)
