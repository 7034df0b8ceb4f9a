"""`pykvq tokenize`: text to token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import common, options

EXAMPLES = """
pykvq tokenize smollm2 "Hello, world"
pykvq tokenize model.gguf --file notes.txt --json
"""


def tokenize(
    model: options.Model,
    text: Annotated[
        str | None, typer.Argument(help="Default: all of standard input, as it is.", show_default=False)
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A file with the text.")] = None,
    bos: Annotated[
        bool | None,
        typer.Option(
            "--bos/--no-bos", help="Begin with the BOS token.  [default: as the model wants]", show_default=False
        ),
    ] = None,
    special: Annotated[
        bool, typer.Option("--special/--no-special", help="Take the names of special tokens as those tokens.")
    ] = True,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Print the token ids of a text. A vocabulary-only GGUF file will do."""
    content = _read(text, file)

    from ..tokenizer import Tokenizer

    ids = Tokenizer.from_gguf(common.fetch(model)).encode(content, add_bos=bos, parse_special=special)
    if json:
        from json import dumps

        print(dumps({"ids": ids}))
    else:
        print(*ids)


def _read(text: str | None, file: Path | None) -> str:
    if text is not None and file is not None:
        raise typer.BadParameter("TEXT and --file exclude each other")
    if file is not None:
        return common.read_file(file)
    return common.read_standard_input("TEXT") if text is None else common.read_argument(text, "TEXT")
