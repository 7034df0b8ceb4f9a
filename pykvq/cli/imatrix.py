"""`pykvq imatrix`: what matters in a model, for `pykvq quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import common, options

EXAMPLES = """
pykvq imatrix model-f16.gguf --text corpus.txt -o model.imatrix
pykvq quantize model-f16.gguf Q4_K_M --imatrix model.imatrix -o model-q4.gguf
"""


def imatrix(
    model: options.Model,
    text: Annotated[
        Path,
        typer.Option(help="A text file like what the model will be used for; 100 kB will do.", show_default=False),
    ],
    output: options.Output,
    chunk: Annotated[int, typer.Option(min=16, help="Tokens that are run together.")] = 512,
    chunks: Annotated[
        int | None, typer.Option(min=1, help="At most so many chunks of the text.", show_default=False)
    ] = None,
    force: options.Force = False,
    threads: options.Threads = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run a text through a model and write how much each input of each of its matrices matters: llama.cpp's format."""
    from .. import Model
    from ..gguf_writer import check_target
    from ..imatrix import collect

    check_target(output, force=force)
    content = common.read_file(text)
    perplexity = 0.0
    with Model.open(common.fetch(model)) as opened, common.Bar() as bar:
        tokens = opened.tokenizer.encode(content, add_bos=False)
        tokens = tokens[: chunks and chunks * chunk]

        def show(n_done: int, n_total: int, so_far: float) -> None:
            nonlocal perplexity
            perplexity, bar.title = so_far, f"perplexity {so_far:.3f}"
            bar.show(n_done, n_total)

        matrix = collect(opened, tokens, dataset=text.name, chunk=chunk, threads=threads, progress=show)
    matrix.save(output, force=force)
    n_matrices, n_chunks = len(matrix.entries), matrix.n_chunks
    if json:
        from json import dumps

        counts = {"n_matrices": n_matrices, "n_chunks": n_chunks, "chunk": chunk}
        print(dumps({"path": str(output), **counts, "perplexity": perplexity}))
    else:
        print(f"{output}: {n_matrices} matrices over {n_chunks} chunks of {chunk}, perplexity {perplexity:.3f}")
