"""`pykvq quantize`: a GGUF file in fewer bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import common, options
from .common import mib

if TYPE_CHECKING:
    from ..quantize import QuantizedTensor

EXAMPLES = """
pykvq quantize model-f16.gguf Q4_K_M -o model-q4.gguf
pykvq quantize model-f16.gguf Q2_K --imatrix model.imatrix -o model-q2.gguf
"""
_TYPES = "Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q5_0, Q5_1, Q4_K_M, Q4_K_S, Q4_0, Q4_1, IQ4_NL, Q3_K_M, Q2_K, F16, BF16 or F32"


def _complete(incomplete: str) -> list[str]:
    from ..quantize import MIXES

    return [name for name in MIXES if name.startswith(incomplete.upper())]


def quantize(
    source: options.Model,
    type: Annotated[
        str, typer.Argument(metavar="TYPE", help=f"{_TYPES}.", autocompletion=_complete, show_default=False)
    ],
    output: options.Output,
    imatrix: Annotated[Path | None, typer.Option(help="Importance matrix, from `pykvq imatrix`.")] = None,
    requantize: Annotated[bool, typer.Option("--requantize", help="Take what is quantized already.")] = False,
    force: options.Force = False,
    threads: options.Threads = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write a copy of a model with its matrices in fewer bits; show the error of each."""
    from ..imatrix import ImportanceMatrix
    from ..quantize import MIXES
    from ..quantize import quantize as run

    common.choose(type.upper(), MIXES, "TYPE")

    matrix = ImportanceMatrix.open(imatrix) if imatrix else None
    path = common.fetch(source)
    tensors: list[QuantizedTensor] = []
    for tensor in run(path, output, type.upper(), imatrix=matrix, requantize=requantize, force=force, threads=threads):
        tensors.append(tensor)
        if not json:
            print(_line(tensor), flush=True)
    n_old, n_new = sum(t.n_old_bytes for t in tensors), sum(t.n_new_bytes for t in tensors)
    if json:
        from json import dumps

        print(dumps({"path": str(output), "n_bytes": n_new, "tensors": [_record(tensor) for tensor in tensors]}))
    else:
        print(f"{output}: {mib(n_old)} -> {mib(n_new)}")


def _line(tensor: QuantizedTensor) -> str:
    shape = " x ".join(map(str, tensor.shape))
    head = f"{tensor.name:<30} {shape:>16}  "
    if tensor.loss is None:
        return f"{head}{tensor.old_type}, copied"
    error = f"error {tensor.loss.relative:8.4%}, rmse {tensor.loss.rmse:.3e}"
    return f"{head}{tensor.old_type} -> {tensor.new_type:<6} {error}"


def _record(tensor: QuantizedTensor) -> dict[str, object]:
    loss = tensor.loss and {"relative": tensor.loss.relative, "rmse": tensor.loss.rmse, "max": tensor.loss.max_error}
    return {"name": tensor.name, "shape": tensor.shape, "from": tensor.old_type, "to": tensor.new_type, "error": loss}
