"""Markdown tables of what `pykvq eval --save` kept: python tools/bench/quality_table.py FILE.jsonl... > OUT.md."""

import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from pykvq.results import Row, cells, markdown, read_rows

COLUMNS: dict[str, Any] = {
    "type": lambda row: row["kv"],
    "bits": lambda row: f"{row['bits_per_element']:.2f}",
    "mean KL": lambda row: f"{row['mean_kl']:.5f}",
    "±": lambda row: f"{row['mean_kl_error']:.5f}",
    "median": lambda row: f"{row['median_kl']:.5f}",
    "99.9%": lambda row: f"{row['kl_99.9']:.4f}",
    "> 1e-3": lambda row: f"{row['above_1e-3']:.1%}",
    "same top": lambda row: f"{row['same_top']:.2%}",
    "perplexity / f16": lambda row: f"{row['perplexity_ratio']:.4f}",
}


def title(row: Row) -> str:
    """What the rows of a table share."""
    s = row["setting"]
    return (
        f"{row['model']['file']} (sha256 {row['model']['sha256'][:12]}), {s['text']}, {s['chunks']} x {s['ctx']} "
        f"tokens, last {s['n_scored']} scored, {s['batch']} per step, {'exact' if s['exact'] else 'int8'} activations, "
        f"commit {row['commit']}, {row['machine']['cpu']}"
    )


def main() -> None:
    """Print a table for each model and setting."""
    rows = [row for file in sys.argv[1:] for row in read_rows(Path(file)) if row["task"] == "divergence"]
    for name, group in groupby(rows, title):
        print(f"### {name}\n\n{markdown(cells(COLUMNS, sorted(group, key=lambda row: row['bits_per_element'])))}\n")


if __name__ == "__main__":
    main()
