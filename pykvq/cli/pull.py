"""`pykvq pull`: fetch a model."""

from __future__ import annotations

from typing import Annotated

import typer

from . import common
from .common import DebugOption


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `pykvq models`, or hf:owner/repo/file.gguf.")],
    debug: DebugOption = False,
) -> None:
    """Fetch a model into the cache folder, verify it, and print its path."""
    print(common.fetch(name, verify=True))
