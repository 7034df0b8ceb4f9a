"""`pykvq convert`: a Hugging Face checkpoint as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import common
from .common import DebugOption, mib


def convert(
    source: Annotated[str, typer.Argument(metavar="DIR|hf:owner/repo", help="A folder with config.json and weights.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    kind: Annotated[str, typer.Option("--type", help="Of the matrices: f16, bf16, f32 or q8_0.")] = "f16",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.", show_default=False)] = None,
    debug: DebugOption = False,
) -> None:
    """Convert a Hugging Face checkpoint to GGUF, and check the result against the original's tokenizer."""
    from ..convert import convert as run

    with common.Bar() as bar:
        bar.title = "converting"
        done = run(source, output, kind.lower(), force=force, threads=threads, progress=bar.show)
    print(f"{done.path}: {done.architecture}, {done.n_params:,} parameters, {mib(done.n_bytes)}")
    print(f"checked: {done.n_tensors} tensors read back, {done.n_checked_tokens} tokens as the original's")
