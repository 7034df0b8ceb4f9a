"""`pykvq bench`: speed by KV type, depth and number of sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import common, complete, options

if TYPE_CHECKING:
    from ..engine import EngineOptions
    from ..results import Columns, Row


EXAMPLES = """
pykvq bench smollm2
pykvq bench smollm2 --kv f16,kivi4 --depths 0,4096 --save speed.jsonl
pykvq bench model.gguf --device cpu,cuda --format csv
"""


def bench(
    model: options.Model,
    kv: Annotated[
        str, typer.Option(help="Comma-separated KV types, or K/V pairs.", autocompletion=complete.kv_type_lists)
    ] = "f16",
    kv_k: options.KVK = None,
    kv_v: options.KVV = None,
    kv_layers: options.KVLayers = None,
    kv_sink: options.KVSink = None,
    kv_tail: options.KVTail = None,
    n_prompt: Annotated[int, typer.Option("--n-prompt", "-p", min=0, help="Tokens of a prefill; 0: none.")] = 512,
    n_gen: Annotated[int, typer.Option("--n-gen", "-n", min=0, help="Tokens of a decode; 0: none.")] = 64,
    depths: Annotated[str, typer.Option("--depths", "-d", help="Tokens in the cache before.")] = "0",
    seqs: Annotated[str, typer.Option(help="Sequences that are decoded together.")] = "1",
    batch: options.Batch = None,
    repeats: Annotated[int, typer.Option("--repeats", "-r", min=1, help="Of each test.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the random tokens.")] = 1,
    threads: options.Threads = None,
    device: Annotated[str, typer.Option(help="Comma-separated devices.")] = "cpu",
    exact: Annotated[bool, typer.Option("--exact", help="Float weights and activations, as `eval` uses.")] = False,
    save: options.Save = None,
    format: Annotated[
        str, typer.Option(help=f"{', '.join(common.FORMATS)}.", autocompletion=lambda: common.FORMATS)
    ] = "md",
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Time prefill and decode; show them beside the bytes they move and the memory bandwidth of this machine.

    Columns and names are those of llama-bench where it has them; t/s is the median, with least and greatest.
    """
    common.choose(format, common.FORMATS, "--format")
    if not n_prompt and not n_gen:
        raise typer.BadParameter("--n-prompt 0 --n-gen 0: nothing to time")
    at, counts = sorted(set(common.numbers(depths, int, "--depths"))), common.numbers(seqs, int, "--seqs")
    if min(counts) < 1:
        raise typer.BadParameter(f"--seqs {seqs}: expected at least 1")

    from .. import Model
    from ..bench import Sweep, Test
    from ..results import ResultFile

    settings: EngineOptions = {
        "threads": threads,
        "exact": exact,
        "kv_k": kv_k,
        "kv_v": kv_v,
        "kv_layers": kv_layers,
        "kv_sink": kv_sink,
        "kv_tail": kv_tail,
    }
    n_errors = 0
    file = ResultFile(save)
    with Model.open(common.fetch(model)) as opened, common.Bar() as bar, common.keep_finished(file):
        sweep = Sweep(opened, batch=batch, options=settings, file=file, progress=bar.show)

        def rows() -> Iterator[Row]:
            for place in device.split(","):
                for i, count in enumerate(counts):
                    test = Test(at, n_prompt if i == 0 else 0, n_gen, count, repeats, seed)  # one prompt runs alone
                    for name in kv.split(","):
                        bar.title = f"{name} on {place}"
                        yield from sweep.rows(name, place, test)

        n_errors = common.print_rows(rows(), _columns(), "jsonl" if json else format)
    if n_errors:
        raise typer.Exit(1)


def _columns() -> Columns:
    def test(row: dict[str, Any]) -> str:
        kind = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
        return kind + (f" @ d{row['n_depth']}" if row["n_depth"] else "")

    def fraction(row: dict[str, Any]) -> str:
        return f"{row['bandwidth_fraction']:.1%}" if row["bandwidth_fraction"] else "-"

    return {
        "model": lambda row: row["model"]["file"],
        "size": lambda row: common.mib(row["model_size"]),
        "params": lambda row: f"{row['model_n_params'] / 1e6:,.2f} M",
        "backend": lambda row: row["device"],
        "threads": lambda row: str(row["n_threads"]),
        "type": lambda row: row["kv"],
        "seqs": lambda row: str(row["n_seqs"]),
        "batch": lambda row: str(row["n_batch"]),
        "test": test,
        "t/s": lambda row: f"{row['median_ts']:.2f}",
        "least": lambda row: f"{row['min_ts']:.2f}",
        "greatest": lambda row: f"{row['max_ts']:.2f}",
        "KV": lambda row: common.mib(row["n_kv_bytes"]),
        "moved/token": lambda row: common.mib(row["bytes_per_token"]),
        "of bandwidth": fraction,
    }
