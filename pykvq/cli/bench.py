"""`pykvq bench`: speed by KV type, depth and number of sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import common
from .common import DebugOption, ModelArgument

if TYPE_CHECKING:
    from ..engine import EngineOptions
    from ..results import Columns, Row


def bench(
    model: ModelArgument,
    kv: Annotated[str, typer.Option(help="Comma-separated KV types, or K/V pairs.")] = "f16",
    kv_k: common.KVKOption = None,
    kv_v: common.KVVOption = None,
    kv_layers: common.KVLayersOption = None,
    kv_sink: common.KVSinkOption = None,
    kv_tail: common.KVTailOption = None,
    n_prompt: Annotated[int, typer.Option("--n-prompt", "-p", min=0, help="Tokens of a prefill; 0: none.")] = 512,
    n_gen: Annotated[int, typer.Option("--n-gen", "-n", min=0, help="Tokens of a decode; 0: none.")] = 64,
    depths: Annotated[str, typer.Option("--depths", "-d", help="Tokens in the cache before.")] = "0",
    seqs: Annotated[str, typer.Option(help="Sequences that are decoded together.")] = "1",
    batch: Annotated[int, typer.Option(min=1, help="Most tokens in one step.")] = 512,
    repeats: Annotated[int, typer.Option("--repeats", "-r", min=1, help="Of each test.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the random tokens.")] = 1,
    threads: common.ThreadsOption = None,
    device: Annotated[str, typer.Option(help="Comma-separated devices.")] = "cpu",
    exact: Annotated[bool, typer.Option("--exact", help="Float weights and activations, as `eval` uses.")] = False,
    save: common.SaveOption = None,
    output: Annotated[str, typer.Option("--output", "-o", help=f"{', '.join(common.OUTPUTS)}.")] = "md",
    debug: DebugOption = False,
) -> None:
    """Time prefill and decode; show them beside the bytes they move and the memory bandwidth of this machine.

    Columns and names are those of llama-bench where it has them; t/s is the median, with least and greatest.
    """
    if output not in common.OUTPUTS:
        raise typer.BadParameter(f"--output {output}: expected one of {', '.join(common.OUTPUTS)}")
    if not n_prompt and not n_gen:
        raise typer.BadParameter("--n-prompt 0 --n-gen 0: nothing to time")
    at, counts = sorted(set(common.numbers(depths, int, "--depths"))), common.numbers(seqs, int, "--seqs")
    if min(counts) < 1:
        raise typer.BadParameter(f"--seqs {seqs}: expected at least 1")

    from .. import Model
    from ..bench import Sweep, Test
    from ..results import ResultFile

    options: EngineOptions = {
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
        sweep = Sweep(opened, batch=batch, options=options, file=file, progress=bar.show)

        def rows() -> Iterator[Row]:
            for place in device.split(","):
                for i, count in enumerate(counts):
                    test = Test(at, n_prompt if i == 0 else 0, n_gen, count, repeats, seed)  # one prompt runs alone
                    for name in kv.split(","):
                        bar.title = f"{name} on {place}"
                        yield from sweep.rows(name, place, test)

        n_errors = common.print_rows(rows(), _columns(), output)
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
        "test": test,
        "t/s": lambda row: f"{row['median_ts']:.2f}",
        "least": lambda row: f"{row['min_ts']:.2f}",
        "greatest": lambda row: f"{row['max_ts']:.2f}",
        "KV": lambda row: common.mib(row["n_kv_bytes"]),
        "moved/token": lambda row: common.mib(row["bytes_per_token"]),
        "of bandwidth": fraction,
    }
