"""`pykvq plan`: what an engine takes, and what fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import common, options
from .common import mib

if TYPE_CHECKING:
    from ..engine import EngineOptions
    from ..model import Model
    from ..results import Columns


EXAMPLES = """
pykvq plan smollm2 --ctx 8192
pykvq plan model.gguf --kv kivi4,tier2 --memory 8GiB  # what fits
pykvq plan model.gguf --device cuda --memory auto  # what fits into the GPU now
"""


def plan(
    model: options.Model,
    kv: options.KVTypes = None,
    kv_k: options.KVK = None,
    kv_v: options.KVV = None,
    kv_layers: options.KVLayers = None,
    kv_sink: options.KVSink = None,
    kv_tail: options.KVTail = None,
    ctx: Annotated[int | None, typer.Option(min=1, help="Most tokens of one sequence.", show_default=False)] = None,
    seqs: Annotated[int, typer.Option(min=1, help="Sequences that have their full context at once.")] = 1,
    batch: options.Batch = None,
    memory: Annotated[
        str | None, typer.Option(help="Show what fits, e.g. 8GiB; auto: what the device has free now.")
    ] = None,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show the memory that a model takes with each KV type: what the engine would allocate, computed by its own code.

    With --memory also the longest context (of --seqs sequences) and the most sequences (of --ctx tokens) that fit.
    """
    n_bytes, size = common.memory(memory, device) if memory else (None, "")

    from .. import Model

    settings: EngineOptions = {
        "ctx": ctx,
        "seqs": seqs,
        "batch": batch,
        "threads": threads,
        "device": device,
        "kv_k": kv_k,
        "kv_v": kv_v,
        "kv_layers": kv_layers,
        "kv_sink": kv_sink,
        "kv_tail": kv_tail,
    }
    with Model.open(common.fetch(model)) as opened:
        rows = [_row(opened, {**settings, "kv": name}, n_bytes) for name in common.kv_names(kv)]
    common.print_rows(rows, _columns(size), "jsonl" if json else "md")


def _row(model: Model, settings: EngineOptions, memory: int | None) -> dict[str, Any]:
    from dataclasses import asdict

    from ..capacity import largest_batch, longest_context
    from ..engine import plan

    row: dict[str, Any] = {"kv": settings.get("kv"), **asdict(plan(model, **settings))}
    if memory is not None:
        row["n_memory_bytes"] = memory
        row["longest_context"] = longest_context(model, memory, settings)
        row["largest_batch"] = largest_batch(model, memory, settings)
    return row


def _columns(memory: str) -> Columns:
    columns: Columns = {
        "type": lambda row: row["kv"],
        "context": lambda row: f"{row['n_seq']} x {row['n_ctx']}",
        "bits": lambda row: f"{row['kv_bits_per_element']:.3f}",
        "bytes/token": lambda row: f"{row['kv_bytes_per_token']:,.0f}",
        "weights": lambda row: mib(row["n_weight_bytes"]),
        "KV cache": lambda row: mib(row["n_kv_bytes"]),
        "scratch": lambda row: mib(row["n_scratch_bytes"]),
        "total": lambda row: mib(row["n_total_bytes"]),
    }
    if not memory:
        return columns
    return {
        **columns,
        f"longest context in {memory}": lambda row: f"{row['longest_context']:,}",
        f"most sequences in {memory}": lambda row: f"{row['largest_batch']:,}",
    }
