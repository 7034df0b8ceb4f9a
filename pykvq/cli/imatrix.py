"""`pykvq imatrix`: what matters in a model, for `pykvq quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import common
from .common import DebugOption, ModelArgument


def imatrix(
    model: ModelArgument,
    text: Annotated[Path, typer.Argument(help="A text file like what the model will be used for; 100 kB will do.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, in llama.cpp's GGUF format.")],
    chunk: Annotated[int, typer.Option(min=16, help="Tokens that are run together.")] = 512,
    chunks: Annotated[
        int | None, typer.Option(min=1, help="At most so many chunks of the text.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.", show_default=False)] = None,
    debug: DebugOption = False,
) -> None:
    """Run a text through a model and write how much each input of each of its matrices matters."""
    from .. import Model
    from ..gguf_writer import check_target
    from ..imatrix import collect

    check_target(target, force=force)
    content = common.read_file(text)
    perplexity = 0.0
    with Model.open(common.fetch(model)) as opened, common.Bar() as bar:

        def show(n_done: int, n_total: int, so_far: float) -> None:
            nonlocal perplexity
            perplexity = so_far
            bar.title = f"perplexity {so_far:.3f}"
            bar.show(n_done, n_total)

        tokens = opened.tokenizer.encode(content, add_bos=False)
        tokens = tokens[: chunks and chunks * chunk]
        matrix = collect(opened, tokens, dataset=text.name, chunk=chunk, threads=threads, progress=show)
    matrix.save(target, force=force)
    n = len(matrix.entries)
    print(f"{target}: {n} matrices over {matrix.n_chunks} chunks of {chunk}, perplexity {perplexity:.3f}")
