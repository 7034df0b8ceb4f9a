"""`pykvq tokenize`: text to token ids."""

from __future__ import annotations

from typing import Annotated

import typer

from . import common
from .common import DebugOption, JsonOption, ModelArgument


def tokenize(
    model: ModelArgument,
    text: Annotated[str | None, typer.Argument(help="Default: all of standard input, as it is.")] = None,
    bos: Annotated[
        bool | None,
        typer.Option(
            "--bos/--no-bos", help="Begin with the BOS token.  [default: as the model wants]", show_default=False
        ),
    ] = None,
    special: Annotated[bool, typer.Option(help="Take the names of special tokens as those tokens.")] = True,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Print the token ids of a text. A vocabulary-only GGUF file will do."""
    content = common.read_standard_input("TEXT") if text is None else common.read_argument(text, "TEXT")

    from ..tokenizer import Tokenizer

    ids = Tokenizer.from_gguf(common.fetch(model)).encode(content, add_bos=bos, parse_special=special)
    if json:
        from json import dumps

        print(dumps({"ids": ids}))
    else:
        print(*ids)
