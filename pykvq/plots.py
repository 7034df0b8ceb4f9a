"""Pictures of result files: quality against bits, speed and memory against context, needles. Needs matplotlib."""

# matplotlib's types are not complete
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError, UnsupportedError
from .results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot(rows: Sequence[Row], folder: Path, suffix: str = "svg") -> list[Path]:
    """Draw every picture that these rows have data for; the files written.

    Raises:
        ArgumentError: there is nothing to draw.
        UnsupportedError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UnsupportedError("plot: matplotlib is missing: pip install 'pykvq[plot]'") from None
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[tuple[str, Callable[[Sequence[Row]], Figure], list[Row]]] = [
        ("quality", _quality, [row for row in rows if row.get("task") == "divergence" and row["mean_kl"] > 0]),
        ("speed", _speed, [row for row in rows if row.get("task") == "bench" and row["n_gen"]]),
        ("memory", _memory, [row for row in rows if row.get("task") == "bench" and row["n_gen"] and row["n_depth"]]),
        ("needle", _needle, [row for row in rows if "cells" in row]),
    ]
    written: list[Path] = []
    for name, draw, data in pictures:
        if data:
            written.append(folder / f"{name}.{suffix}")
            draw(data).savefig(written[-1], bbox_inches="tight", metadata={"Date": None} if suffix == "svg" else None)
    if not written:
        raise ArgumentError("plot: no rows of `pykvq eval` or `pykvq bench` in these files")
    return written


def _groups(rows: Sequence[Row], name: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by a name, in order of appearance."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    return groups


def _axes(
    names: Sequence[str], *, columns: int = 2, width: float = 7.5, height: float = 5.0
) -> tuple[Figure, list[Axes]]:
    """A figure with axes in rows, each with its title."""
    from matplotlib.figure import Figure as NewFigure

    columns = min(columns, len(names))
    n_rows = -(-len(names) // columns)
    figure = NewFigure(figsize=(width * columns, height * n_rows), layout="constrained")
    axes = list(figure.subplots(n_rows, columns, squeeze=False).flat)
    for one in axes[len(names) :]:
        one.set_axis_off()
    for one, name in zip(axes, names, strict=False):
        one.set_title(name, fontsize=10)
    return figure, axes[: len(names)]


def _quality(rows: Sequence[Row]) -> Figure:
    """Mean KL divergence against effective bits; the line joins the types that no other beats in both.

    Of several runs of a model and setting, the one with most tokens is shown.
    """

    def name(row: Row) -> str:
        cache = [f"{key[3:]} {value}" for key, value in row["setting"].items() if key.startswith("kv_")]
        return ", ".join([row["model"]["file"], f"{row['setting']['ctx']} tokens", *cache])

    groups: dict[str, list[Row]] = {}
    for title, group in _groups(rows, name).items():
        runs = _groups(group, lambda row: f"{row['n_tokens']} scored, {_fed(row)}")
        run, best = max(runs.items(), key=lambda item: item[1][0]["n_tokens"])
        groups[f"{title}\n{run}"] = sorted(best, key=lambda row: row["bits_per_element"])
    figure, axes = _axes(list(groups))
    for one, group in zip(axes, groups.values(), strict=True):
        _frontier(one, group)
    return figure


def _frontier(one: Axes, rows: Sequence[Row]) -> None:
    """The types of one run, by bits."""
    best: list[Row] = []
    for row in rows:
        x, y = row["bits_per_element"], row["mean_kl"]
        is_ours = not row["kv"].startswith("llama.cpp")
        one.errorbar(x, y, yerr=row["mean_kl_error"], fmt="o", color="tab:blue" if is_ours else "tab:red", ms=4)
        one.annotate(row["kv"], (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
        if not best or y < best[-1]["mean_kl"]:
            best.append(row)
    one.plot([row["bits_per_element"] for row in best], [row["mean_kl"] for row in best], color="tab:green", lw=1)
    one.set(yscale="log", xlabel="bits per element, with scales, sink and tail", ylabel="mean KL divergence from f16")
    one.grid(alpha=0.3)


def _fed(row: Row) -> str:
    batch = row["setting"]["batch"]
    return "one at a time" if batch == 1 else f"{batch} per step"


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Of each type the newest row of each depth, by depth."""
    newest = {(row["kv"], row["n_depth"]): row for row in sorted(rows, key=lambda row: row["date"])}
    return _groups([newest[key] for key in sorted(newest, key=lambda key: key[1])], lambda row: row["kv"])


def _speed(rows: Sequence[Row]) -> Figure:
    """Decoded tokens per second against depth, with the spread of the repeats."""
    groups = _groups(rows, lambda row: f"{row['model']['file']}, {row['device']}, {row['n_seqs']} sequences")
    figure, axes = _axes(list(groups))
    for one, group in zip(axes, groups.values(), strict=True):
        for kv, line in _lines(group).items():
            depths = [row["n_depth"] for row in line]
            one.plot(depths, [row["median_ts"] for row in line], marker="o", label=kv)
            one.fill_between(depths, [row["min_ts"] for row in line], [row["max_ts"] for row in line], alpha=0.15)
        one.set(xlabel="tokens in the cache", ylabel="decoded tokens/s", ylim=(0, None))
        one.grid(alpha=0.3)
        one.legend(fontsize=8)
    return figure


def _memory(rows: Sequence[Row]) -> Figure:
    """Bytes of the cache against depth."""
    groups = _groups(rows, lambda row: f"{row['model']['file']}, {row['n_seqs']} sequences")
    figure, axes = _axes(list(groups))
    for one, group in zip(axes, groups.values(), strict=True):
        for kv, line in _lines(group).items():
            one.plot(
                [row["n_depth"] for row in line], [row["n_kv_bytes"] / 2**20 for row in line], marker="o", label=kv
            )
        one.set(xlabel="tokens in the cache", ylabel="KV cache, MiB", ylim=(0, None))
        one.grid(alpha=0.3)
        one.legend(fontsize=8)
    return figure


def _needle(rows: Sequence[Row]) -> Figure:
    """A map for each task and type: right answers by context length and depth."""
    rows = sorted(rows, key=lambda row: (row["model"]["file"], row["task"]))  # a row of maps for each
    columns = max(len(group) for group in _groups(rows, lambda row: (row["model"]["file"], row["task"])).values())
    figure, axes = _axes([f"{row['task']}, {row['kv']}" for row in rows], columns=columns, width=2.4, height=2.6)
    for one, row in zip(axes, rows, strict=True):
        lengths, depths = row["setting"]["lengths"], row["setting"]["depths"]
        right = {(cell["length"], cell["depth"]): cell["correct"] for cell in row["cells"]}
        values = [[right[length, depth] for length in lengths] for depth in depths]
        one.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        one.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        one.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        one.set(xlabel="context", ylabel="depth")
    return figure
