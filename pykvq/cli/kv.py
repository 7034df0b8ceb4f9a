"""`pykvq kv`: how a cache can be stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import common, complete, options

if TYPE_CHECKING:
    from ..kv import KVType
    from ..model import Model
    from ..results import Columns

EXAMPLES = """
pykvq kv  # every KV type
pykvq kv smollm2 --memory 1GiB  # bytes per token of this model, the longest context in a memory
"""
_HEAD_DIM = 128  # if no model says otherwise


def kv(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Show bytes per token of this model.",
            autocompletion=complete.models,
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Show the longest context that fits, e.g. 8GiB; auto: what is free now.")
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the KV types: bits per element, bytes per token of a model, the longest context, when to use which."""
    if memory is not None and model is None:
        raise typer.BadParameter("--memory needs MODEL")
    n_bytes, size = common.memory(memory, "cpu") if memory else (None, "")

    from .. import Model
    from ..kv import kv_types

    if model is None:
        rows = [_row(kv, None, None) for kv in kv_types()]
    else:
        with Model.open(common.fetch(model)) as opened:
            rows = [_row(kv, opened, n_bytes) for kv in kv_types()]
    common.print_rows(rows, _columns(model is not None, size), "jsonl" if json else "md")


def _row(kv: KVType, model: Model | None, memory: int | None) -> dict[str, Any]:
    from ..capacity import longest_context, tile_bits
    from ..engine import plan

    head_dim = model.info.head_dim if model else _HEAD_DIM
    row: dict[str, Any] = {
        "kv": kv.name,
        "head_dim": head_dim,
        "bits_k": tile_bits(kv.name, "k", head_dim),
        "bits_v": tile_bits(kv.name, "v", head_dim),
        "sink": kv.sink,
        "tail": kv.tail,
    }
    if model:
        row["bytes_per_token"] = plan(model, kv=kv.name).kv_bytes_per_token
    if model and memory is not None:
        row["longest_context"] = longest_context(model, memory, {"kv": kv.name})
    return {**row, "summary": kv.summary}


def _columns(has_model: bool, memory: str) -> Columns:
    columns: Columns = {
        "type": lambda row: row["kv"],
        "K bits": lambda row: f"{row['bits_k']:.3f}",
        "V bits": lambda row: f"{row['bits_v']:.3f}",
        "sink": lambda row: str(row["sink"]),
        "tail": lambda row: "all" if row["tail"] is None else str(row["tail"]),
    }
    if has_model:
        columns = {**columns, "bytes/token": lambda row: f"{row['bytes_per_token']:,.0f}"}
    if memory:
        columns = {**columns, f"longest context in {memory}": lambda row: f"{row['longest_context']:,}"}
    return {**columns, "when": lambda row: row["summary"]}
