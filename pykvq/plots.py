"""Pictures of result files: quality against bits, speed and memory against context, needles. Needs matplotlib."""

# matplotlib's types are not complete
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError, UnsupportedError
from .results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PALETTE = [
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#7b3294",
    "#b8860b",
    "#56b4e9",
    "#8c2d04",
    "#1b7837",
    "#c51b7d",
]


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
    matplotlib.rcParams["svg.hashsalt"] = "pykvq"  # the same data, the same file
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[tuple[str, Callable[[Sequence[Row]], Figure], list[Row]]] = [
        ("quality", _quality, [row for row in rows if row.get("task") == "divergence" and row["mean_kl"] > 0]),
        ("speed", _speed, [row for row in rows if row.get("task") == "bench" and row["n_gen"]]),
        ("speed_gpu", _speed_gpu, [row for row in rows if "tokens_per_second" in row and "program" in row]),
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


def _sequences(row: Row) -> str:
    return "one sequence" if row["n_seqs"] == 1 else f"{row['n_seqs']} sequences"


def _speed(rows: Sequence[Row]) -> Figure:
    """Decoded tokens per second against depth, with the spread of the repeats."""
    groups = _groups(rows, lambda row: f"{row['model']['file']}, {row['device']}, {_sequences(row)}")
    figure, axes = _axes(list(groups))
    for one, group in zip(axes, groups.values(), strict=True):
        names = ("n_depth", "median_ts", "min_ts", "max_ts")
        _curves(one, {kv: [tuple(row[name] for name in names) for row in line] for kv, line in _lines(group).items()})
        one.set_ylabel("decoded tokens/s")
    return figure


def _speed_gpu(rows: Sequence[Row]) -> Figure:
    """Rows of tools/bench/collect_gpu.py, ours and llama.cpp's: decode of one sequence, and prompts of 512 tokens."""
    jobs = {"decode, one sequence": 0, "prompt of 512 tokens": 512}
    figure, axes = _axes(list(jobs))
    figure.suptitle(f"{rows[0]['device'].split(',')[0]}: {rows[0]['what'].split(';')[0]}", fontsize=11)
    for one, n_prompt in zip(axes, jobs.values(), strict=True):
        chosen = [row for row in rows if (row["n_seq"], row["prompt"]) == (1, n_prompt)]
        chosen.sort(key=lambda row: row["depth"])
        lines = _groups(chosen, lambda row: row["kv"] if row["program"] == "pykvq" else f"{row['program']} {row['kv']}")
        _curves(one, {kv: [(row["depth"], row["tokens_per_second"]) for row in line] for kv, line in lines.items()})
        one.yaxis.set_major_formatter("{x:,.0f}")
        one.set_ylabel("tokens/s")
    return figure


def _memory(rows: Sequence[Row]) -> Figure:
    """Bytes of the cache against depth."""
    groups = _groups(rows, lambda row: f"{row['model']['file']}, {_sequences(row)}")
    figure, axes = _axes(list(groups))
    for one, group in zip(axes, groups.values(), strict=True):
        lines = _lines(group).items()
        _curves(one, {kv: [(row["n_depth"], row["n_kv_bytes"] / 2**20) for row in line] for kv, line in lines})
        one.set_ylabel("KV cache, MiB")
    return figure


def _colors(names: Iterable[str]) -> list[str]:
    """f16 is black, another program gray."""
    colors = iter(_PALETTE * 9)
    return ["black" if name == "f16" else "0.55" if " " in name else next(colors) for name in names]


def _curves(one: Axes, lines: Mapping[str, Sequence[tuple[float, ...]]]) -> None:
    """Lines against a logarithm of the tokens in the cache, each with its name beside the right edge.

    Args:
        lines: points by name: tokens, y, and where there is a spread the least and the greatest y.
    """
    depths = sorted({int(point[0]) for line in lines.values() for point in line})
    least = next((depth for depth in depths if depth), 4)  # an empty cache stands two doublings to the left of it

    def place(depth: float) -> float:
        return math.log2(depth or least / 4)

    ends: list[tuple[str, str, float, float]] = []
    for (name, line), color in zip(lines.items(), _colors(lines), strict=True):
        x, y = [place(point[0]) for point in line], [point[1] for point in line]
        if all(len(point) == 4 for point in line):
            one.fill_between(x, [p[2] for p in line], [p[3] for p in line], color=color, alpha=0.1, lw=0)
        one.plot(x, y, color=color, marker="o", ms=3.5, lw=1.6, ls="--" if " " in name else "-")
        ends.append((name, color, x[-1], y[-1]))
    one.set_ylim(0, 1.08 * max(y for line in lines.values() for point in line for y in point[1:]))
    one.set_xticks([place(depth) for depth in depths], [_tokens(depth) for depth in depths])
    one.set_xlabel("tokens in the cache")
    one.grid(alpha=0.25)
    one.spines[["top", "right"]].set_visible(False)
    _name_ends(one, ends)


def _tokens(n: int) -> str:
    return "empty" if n == 0 else f"{n // 1024}k" if n % 1024 == 0 else str(n)


def _name_ends(one: Axes, ends: list[tuple[str, str, float, float]]) -> None:
    """Write (name, color, x, y) beside the right edge, none over another, as near to their heights as that goes."""
    gap, top = 0.047, one.get_ylim()[1]  # of the axes' height
    runs: list[list[float]] = []  # heights wanted by names that touch
    for _, _, _, y in sorted(ends, key=lambda end: end[3]):
        run = [y / top]
        while runs and _middle(runs[-1]) + gap * len(runs[-1]) / 2 > _middle(run) - gap * len(run) / 2:
            run = runs.pop() + run
        runs.append(run)
    heights = [max(_middle(run) - gap * (len(run) - 1) / 2, gap / 2) + gap * i for run in runs for i in range(len(run))]
    for (name, color, x, y), height in zip(sorted(ends, key=lambda end: end[3]), heights, strict=True):
        leader = {"arrowstyle": "-", "color": color, "lw": 0.6, "alpha": 0.6, "relpos": (0, 0.5), "shrinkA": 1}
        place: dict[str, Any] = {"xycoords": "data", "textcoords": "axes fraction", "va": "center"}
        one.annotate(f"{name}  {y:,.0f}", (x, y), (1.04, height), **place, fontsize=8.5, color=color, arrowprops=leader)


def _middle(values: Sequence[float]) -> float:
    return sum(values) / len(values)


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
