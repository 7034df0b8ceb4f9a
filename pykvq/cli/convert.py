"""`pykvq convert`: a Hugging Face checkpoint as a GGUF file."""

from __future__ import annotations

from typing import Annotated

import typer

from . import common, options
from .common import mib

EXAMPLES = """
pykvq convert SmolLM2-135M-Instruct -o smollm2-f16.gguf
pykvq convert hf:Qwen/Qwen2.5-0.5B-Instruct -o qwen.gguf --type q8_0
"""


def _complete(incomplete: str) -> list[str]:
    from ..convert import TYPES

    return [name for name in TYPES if name.startswith(incomplete)]


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="DIR|hf:owner/repo", help="A folder with config.json and weights.", show_default=False),
    ],
    output: options.Output,
    type: Annotated[
        str, typer.Option(help="Of the matrices: f16, bf16, f32 or q8_0.", autocompletion=_complete)
    ] = "f16",
    force: options.Force = False,
    threads: options.Threads = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Convert a Hugging Face checkpoint to GGUF, and check the result against the original's tokenizer."""
    from ..convert import TYPES
    from ..convert import convert as run

    common.choose(type.lower(), TYPES, "--type")

    with common.Bar("converting", is_bytes=True) as bar:
        done = run(source, output, type.lower(), force=force, threads=threads, progress=bar.show)
    if json:
        from dataclasses import asdict
        from json import dumps

        print(dumps(asdict(done), default=str))
        return
    print(f"{done.path}: {done.architecture}, {done.n_params:,} parameters, {mib(done.n_bytes)}")
    print(f"checked: {done.n_tensors} tensors read back, {done.n_checked_tokens} tokens as the original's")
