"""`pykvq pull`: fetch a model."""

from __future__ import annotations

from typing import Annotated

import typer

from . import common, complete, options

EXAMPLES = """
pykvq pull smollm2
pykvq pull hf:bartowski/Llama-3.2-1B-Instruct-GGUF/Llama-3.2-1B-Instruct-Q4_K_M.gguf
"""


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name of `pykvq models`, or hf:owner/repo/file.gguf.",
            autocompletion=complete.names,
            show_default=False,
        ),
    ],
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Fetch a model into the cache folder, verify it, and print its path."""
    path = common.fetch(name, verify=True)
    if json:
        from json import dumps

        print(dumps({"name": name, "path": path}))
    else:
        print(path)
