"""`pykvq eval`: what KV types cost in quality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from . import common, options

if TYPE_CHECKING:
    from ..results import Columns

EXAMPLES = """
pykvq eval smollm2 --kv kivi4,tier2  # divergence from f16
pykvq eval smollm2 --text book.txt --save quality.jsonl
pykvq eval model.gguf --task needle,turns --lengths 4096
"""
_TASKS = ("divergence", "needle", "multikey", "tracking", "turns", "tool")


def evaluate(
    model: options.Model,
    task: Annotated[str, Option(help=f"Comma-separated: {', '.join(_TASKS)}.")] = "divergence",
    kv: options.KVTypes = None,
    kv_k: options.KVK = None,
    kv_v: options.KVV = None,
    kv_layers: options.KVLayers = None,
    kv_sink: options.KVSink = None,
    kv_tail: options.KVTail = None,
    text: Annotated[Path | None, Option(help="A text file; default: the help topics that come with Python.")] = None,
    ctx: Annotated[int, Option(min=2, help="Tokens of a window of the text.")] = 2048,
    chunks: Annotated[int, Option(min=1, help="Windows of the text, from its start.")] = 4,
    last: Annotated[
        int | None, Option(min=2, help="Score the last N tokens of each window, not its second half.")
    ] = None,
    batch: Annotated[
        int, Option(min=1, help="Most tokens in one step: the loss depends on it, so 512 on every device.")
    ] = 512,
    one_at_a_time: Annotated[bool, Option("--one-at-a-time", help="The same as --batch 1.")] = False,
    lengths: Annotated[str, Option(help="Of the contexts of the other tasks, tokens.")] = "1024,2048",
    depths: Annotated[str, Option(help="Where the other tasks hide what they ask for.")] = "0,0.25,0.5,0.75,1",
    samples: Annotated[int, Option(min=1, help="Questions for each length and depth.")] = 4,
    seed: Annotated[int, Option(help="Of those questions.")] = 1,
    fast: Annotated[bool, Option("--fast", help="Round activations to int8, as `generate` does.")] = False,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    save: options.Save = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure what KV types cost in quality, against an f16 cache on the same text.

    KL divergence and perplexity by default; needles in a long text and other tasks with --task.
    """
    wanted = task.split(",")
    for name in wanted:
        common.choose(name, _TASKS, "--task")
    sizes, places = common.numbers(lengths, int, "--lengths"), common.numbers(depths, float, "--depths")
    content = common.read_file(text) if text else _help_topics()

    from .. import Model
    from ..evaluation import Sweep
    from ..results import ResultFile

    n_errors = 0
    file = ResultFile(save)
    with Model.open(common.fetch(model)) as opened, common.Bar() as bar, common.keep_finished(file):
        sweep = Sweep(
            opened,
            common.kv_names(kv),
            content,
            text.name if text else "pydoc_data.topics",
            batch=1 if one_at_a_time else batch,
            options={
                "threads": threads,
                "device": device,
                "exact": not fast,
                "kv_k": kv_k,
                "kv_v": kv_v,
                "kv_layers": kv_layers,
                "kv_sink": kv_sink,
                "kv_tail": kv_tail,
            },
            file=file,
            progress=bar.show,
        )
        for name in wanted:
            bar.title = name
            if name == "divergence":
                rows = sweep.divergence(ctx=ctx, count=chunks, n_scored=last or ctx - ctx // 2)
            else:
                rows = sweep.retrieval(name, lengths=sizes, depths=places, samples=samples, seed=seed)
            n_errors += common.print_rows(rows, _columns(name), "jsonl" if json else "md")
    if n_errors:
        raise typer.Exit(1)


def _help_topics() -> str:
    """A text that every Python carries."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def _columns(task: str) -> Columns:
    if task == "divergence":
        return {
            "type": lambda row: row["kv"],
            "bits": lambda row: f"{row['bits_per_element']:.3f}",
            "mean KL": lambda row: f"{row['mean_kl']:.6f} ± {row['mean_kl_error']:.6f}",
            "median": lambda row: f"{row['median_kl']:.6f}",
            "99%": lambda row: f"{row['kl_99']:.4f}",
            "99.9%": lambda row: f"{row['kl_99.9']:.4f}",
            "max": lambda row: f"{row['max_kl']:.3f}",
            "> 1e-3": lambda row: f"{row['above_1e-3']:.2%}",
            "same top": lambda row: f"{row['same_top']:.2%} ± {row['same_top_error']:.2%}",
            "perplexity": lambda row: f"{row['perplexity']:.4f}",
            "ratio to f16": lambda row: f"{row['perplexity_ratio']:.5f} ± {row['perplexity_ratio_error']:.5f}",
        }
    return {
        "type": lambda row: row["kv"],
        "bits": lambda row: f"{row['bits_per_element']:.3f}",
        "task": lambda row: row["task"],
        "cases": lambda row: str(row["n"]),
        "right": lambda row: f"{row['correct']:.2%}",
        "tokens right": lambda row: f"{row['tokens_right']:.2%}",
        "loss per token": lambda row: f"{row['loss']:.4f}",
    }
