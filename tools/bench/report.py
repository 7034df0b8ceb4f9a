"""Writes the tables of REPORT.md and README.md from the result files beside it: python tools/bench/report.py.

A table stands between `<!-- NAME -->` and `<!-- end -->` and is whatever the function of that name returns. No figure
of these tables is typed by hand; tests/evidence/test_report.py holds the pages to what this script writes.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pykvq.capacity import tile_bits
from pykvq.results import Columns, Row, cells, markdown, read_rows

HERE = Path(__file__).parent
PAGES = (HERE / "REPORT.md", HERE.parents[1] / "README.md")
MODELS = {  # begin of the file's sha256, in the order of the report: name
    "b179c9523d0e": "SmolLM2-135M",  # instruct, Q4_1
    "1d9614638d18": "Qwen2.5-Coder-0.5B",  # instruct, Q4_K_M
    "cc324af070c2": "Qwen2.5-Coder-1.5B",  # instruct, Q4_K_M
}
SMALL = ("SmolLM2-135M", "Qwen2.5-Coder-0.5B")  # under a billion parameters
SETTINGS = ("kv_k", "kv_v", "kv_layers", "kv_sink", "kv_tail")

Groups = dict[Any, list[Row]]


# ---- reading ----


def results(*tasks: str) -> list[Row]:
    """Rows of these tasks from all files, models in order; of rows measured twice the newest."""
    newest: dict[str, Row] = {}
    for path in sorted(HERE.glob("*.jsonl")):
        for row in read_rows(path):
            if row.get("task") in tasks and _hash(row) in MODELS:
                what = [row.get(n) for n in ("question", "variant", "device", "n_prompt", "n_gen", "n_depth", "n_seqs")]
                key = json.dumps([row["task"], row["kv"], row["model"]["sha256"], row["setting"], what])
                if key not in newest or newest[key]["date"] <= row["date"]:
                    newest[key] = row
    order = list(MODELS)
    return sorted(newest.values(), key=lambda row: order.index(_hash(row)))


def _hash(row: Row) -> str:
    return row["model"]["sha256"][:12]


def measured(name: str) -> Any:
    """A JSON file of results."""
    return json.loads((HERE / name).read_text())


def groups(rows: Iterable[Row], key: Callable[[Row], Any]) -> Groups:
    """Rows by a key, in order of appearance."""
    result: Groups = {}
    for row in rows:
        result.setdefault(key(row), []).append(row)
    return result


def short(row: Row) -> str:
    """The model."""
    return MODELS[_hash(row)]


def is_default(row: Row) -> bool:
    """Are sink, tail and layers those of the type?"""
    return not any(name in row["setting"] for name in SETTINGS)


def steps(row: Row) -> str:
    """How tokens were fed."""
    batch = row["setting"]["batch"]
    return "one token at a time" if batch == 1 else f"{batch} tokens per step"


def where(row: Row) -> str:
    """The device, if it is not the CPU."""
    device = row["setting"].get("device", "cpu")
    return "" if device == "cpu" else f", {device}"


def divergences(**setting: Any) -> list[Row]:
    """Rows of `pykvq eval` with these settings, types as they come, by bits."""
    rows = [row for row in results("divergence") if is_default(row) and setting.items() <= row["setting"].items()]
    return sorted(rows, key=lambda row: (list(MODELS.values()).index(short(row)), row["bits_per_element"]))


def losses() -> dict[tuple[str, str], Row]:
    """What types cost models, in the run that scored most tokens, 64 tokens of 2048 per step: by (model, type)."""
    rows = sorted(divergences(ctx=2048, batch=64), key=lambda row: row["n_tokens"])
    return {(short(row), row["kv"]): row for row in rows}


def benches(**fields: Any) -> list[Row]:
    """Rows of `pykvq bench` with these fields."""
    return [row for row in results("bench") if fields.items() <= row.items()]


# ---- writing ----


def sources(rows: Sequence[Row]) -> str:
    """What is needed to measure these rows again."""
    commands = dict.fromkeys(_command(row["command"]) for row in rows)
    commits = dict.fromkeys(row["commit"] or "not recorded" for row in rows)
    machine = rows[0]["machine"]
    texts = dict.fromkeys(row["setting"]["text_sha256"][:12] for row in rows if "text_sha256" in row["setting"])
    parts = [
        " and ".join(f"`{command}`" for command in commands),
        f"commit {', '.join(commits)}",
        f"{machine['cpu']}, {machine['cores']} cores, {machine.get('isa', '')}".rstrip(", "),
        f"model sha256 {', '.join(dict.fromkeys(map(_hash, rows)))}",
        *(f"text sha256 {text}" for text in texts),
        min(row["date"] for row in rows)[:10],
    ]
    return "<sub>" + "; ".join(parts) + "</sub>"


def _command(command: str) -> str:
    """Without what does not change a figure, or differs between the rows of a table."""
    command = re.sub(
        r" --(save|threads|kv|kv-sink|kv-tail|kv-layers|question|task) \S+( (?!-)\S+)*", "", command
    ).replace(" --json", "")
    return command.replace("__main__.py", "pykvq")


def table(columns: Columns, rows: Sequence[Row]) -> str:
    """A markdown table."""
    return markdown(cells(columns, rows))


def titled(title: str, columns: Columns, rows: Sequence[Row]) -> str:
    """A table with its title and its sources."""
    return f"#### {title}\n\n{table(columns, rows)}\n\n{sources(rows)}"


def number(x: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{x:.3g}" if x == 0 or x >= 1e-4 else f"{x:.1e}"


KL: Columns = {
    "mean KL": lambda row: f"{row['mean_kl']:.5f} ± {row['mean_kl_error']:.5f}",
    "median": lambda row: f"{row['median_kl']:.5f}",
}
QUALITY: Columns = {
    "type": lambda row: row["kv"],
    "bits": lambda row: f"{row['bits_per_element']:.2f}",
    **KL,
    "99%": lambda row: f"{row['kl_99']:.4f}",
    "99.9%": lambda row: f"{row['kl_99.9']:.4f}",
    "max": lambda row: f"{row['max_kl']:.2f}",
    "> 1e-3": lambda row: f"{row['above_1e-3']:.1%}",
    "same top": lambda row: f"{row['same_top']:.2%} ± {row['same_top_error']:.2%}",
    "perplexity / f16": lambda row: f"{row['perplexity_ratio']:.4f} ± {row['perplexity_ratio_error']:.4f}",
}


# ---- quality ----


def quality() -> str:
    """A table for each model, context and way of feeding."""

    def title(row: Row) -> str:
        s = row["setting"]
        windows = f"{s['chunks']} x {s['ctx']} tokens, the last {s['n_scored']} of each scored"
        return f"{short(row)}, {windows}, {steps(row)}{where(row)}"

    return "\n\n".join(titled(name, QUALITY, rows) for name, rows in groups(divergences(), title).items())


def oracle() -> str:
    """Mean KL divergence beside that of an independent program."""
    told = measured("oracle.json")
    parts: list[str] = []
    for case in told["cases"]:
        rows = [
            row
            for row in results("divergence")
            if row["kv"] in case["mean_kl"]
            and short(row) == "SmolLM2-135M"
            and {k: v for k, v in row["setting"].items() if k in case["setting"] or k in SETTINGS} == case["setting"]
        ]
        rows.sort(key=lambda row: list(case["mean_kl"]).index(row["kv"]))

        def verdict(row: Row, expected: dict[str, float] = case["mean_kl"]) -> str:
            excess = row["mean_kl"] - 1.1 * expected[row["kv"]]
            error = row["mean_kl_error"]
            return "met" if excess <= 0 else f"missed by {excess / error:.1f} standard errors"

        def oracle_value(row: Row, expected: dict[str, float] = case["mean_kl"]) -> str:
            return number(expected[row["kv"]])

        columns: Columns = {
            "type": lambda row: row["kv"],
            "oracle": oracle_value,
            **KL,
            "at most the oracle + 10%": verdict,
        }
        if rows:
            parts.append(titled(case["name"], columns, rows))
    return "\n\n".join(parts)


def llamacpp() -> str:
    """llama.cpp's quantized caches and ours at about their bits."""
    parts: list[str] = []

    def run(row: Row) -> tuple[Any, ...]:
        s = row["setting"]
        return short(row), s["ctx"], s["chunks"], s["batch"], s["device"]

    for rows in groups(divergences(), run).values():
        theirs = [row for row in rows if row["kv"].startswith("llama.cpp")]
        if theirs:
            bits = [row["bits_per_element"] for row in theirs]
            ours = [row for row in rows if row not in theirs and row["bits_per_element"] <= max(bits) + 0.5]
            title = f"{short(rows[0])}, {rows[0]['setting']['chunks']} x {rows[0]['setting']['ctx']} tokens"
            parts.append(titled(title, QUALITY, sorted(theirs + ours, key=lambda row: row["mean_kl"])))
    return "\n\n".join(parts)


# ---- ablations ----


def settings() -> str:
    """Sink, tail and protected layers: mean KL divergence of each type."""

    def name(row: Row) -> str:
        s = row["setting"]
        layers = f", layers {s['kv_layers']}" if "kv_layers" in s else ""
        return f"sink {s['kv_sink']}, tail {s['kv_tail']}{layers}"

    parts: list[str] = []
    rows = [row for row in results("divergence") if "kv_sink" in row["setting"] and row["setting"]["batch"] != 1]
    for group in groups(rows, lambda row: (short(row), row["setting"]["chunks"])).values():
        types = list(dict.fromkeys(row["kv"] for row in group))
        lines = groups(group, name)
        title = (
            f"{short(group[0])}, {group[0]['setting']['chunks']} x {group[0]['setting']['ctx']} tokens: mean KL (bits)"
        )
        parts.append(f"#### {title}\n\n{markdown(_pivot('', types, lines, _loss_and_bits))}\n\n{sources(group)}")
    return "\n\n".join(parts)


def _loss_and_bits(row: Row) -> str:
    return f"{row['mean_kl']:.4f} ± {row['mean_kl_error']:.4f} ({row['bits_per_element']:.2f})"


def _pivot(corner: str, types: list[str], lines: Groups, cell: Callable[[Row], str]) -> list[list[str]]:
    """A line for each group, a column for each type."""
    rows = [[corner, *types]]
    for name, group in lines.items():
        by_type = {row["kv"]: row for row in group}
        rows.append([name, *(cell(by_type[kv]) if kv in by_type else "" for kv in types)])
    return rows


def mixes() -> str:
    """Pairs of a K and a V type beside the types they are made of."""
    parts: list[str] = []
    rows_of = groups(divergences(ctx=2048, batch=64), lambda row: (short(row), row["setting"]["chunks"], where(row)))
    for rows in rows_of.values():
        pairs = [row for row in rows if "/" in row["kv"]]
        made_of = {name for row in pairs for name in row["kv"].split("/")}
        shown = [row for row in rows if row in pairs or row["kv"] in made_of]
        if pairs:
            parts.append(titled(f"{short(rows[0])}, {rows[0]['setting']['chunks']} x 2048 tokens", QUALITY, shown))
    return "\n\n".join(parts)


def ablation(question: str) -> Callable[[], str]:
    """A table of a question of tools/kv_ablation.py."""
    columns: Columns = {
        "type": lambda row: row["kv"],
        "variant": lambda row: row["variant"],
        "K bits": lambda row: f"{row['bits_k']:.3f}",
        "V bits": lambda row: f"{row['bits_v']:.3f}",
        **KL,
        "same top": lambda row: f"{row['same_top']:.2%}",
    }

    def part() -> str:
        rows = [row for row in results("ablation") if row["question"] == question]
        titles = groups(rows, lambda row: f"{short(row)}, {row['setting']['chunks']} x {row['setting']['ctx']} tokens")
        return "\n\n".join(titled(title, columns, group) for title, group in titles.items())

    return part


# ---- retrieval ----


def retrieval() -> str:
    """Right answers by task and type, over all lengths and depths."""
    parts: list[str] = []

    def asked(row: Row) -> tuple[Any, ...]:
        s = row["setting"]
        return short(row), str(s["lengths"]), str(s["depths"]), s["samples"], where(row)

    for (model, *_), rows in groups(results("needle", "multikey", "tracking", "turns", "tool"), asked).items():
        types = list(dict.fromkeys(row["kv"] for row in rows))
        lines = groups(rows, lambda row: row["task"])
        cells_ = _pivot("task", types, lines, lambda row: f"{row['correct']:.0%} ({row['loss']:.3f})")
        s = rows[0]["setting"]
        title = (
            f"{model}, contexts of {', '.join(map(str, s['lengths']))} tokens, depths "
            f"{', '.join(map(str, s['depths']))}, {s['samples']} samples of each, seed {s['seed']}{where(rows[0])}"
        )
        parts.append(f"#### {title}: right answers (loss per token)\n\n{markdown(cells_)}\n\n{sources(rows)}")
    return "\n\n".join(parts)


# ---- speed ----


def speed(device: str) -> str:
    """Decode and prefill of `pykvq bench` on a device, with the ratio to f16."""
    parts: list[str] = []
    rows = benches(n_seqs=1, device=device)
    for group in groups(rows, lambda row: (short(row), row["n_threads"], row["setting"]["exact"])).values():
        for kind, of in (("decode", "n_gen"), ("prefill", "n_prompt")):
            some = [row for row in group if row[of]]
            types = list(dict.fromkeys(row["kv"] for row in some))
            lines = groups(sorted(some, key=lambda row: row["n_depth"]), lambda row: f"{row['n_depth']:,}")
            f16 = {row["n_depth"]: row["median_ts"] for row in some if row["kv"] == "f16"}

            def cell(row: Row, f16: dict[int, float] = f16) -> str:
                ratio = f" ({row['median_ts'] / f16[row['n_depth']]:.2f})" if row["n_depth"] in f16 else ""
                return f"{row['median_ts']:.1f}{ratio}"

            if some:
                where_ = f"{some[0]['n_threads']} threads" if device == "cpu" else device
                title = f"{short(some[0])}, {kind}, tokens/s (ratio to f16), {where_}"
                body = markdown(_pivot("depth", types, lines, cell))
                parts.append(f"#### {title}\n\n{body}\n\n{sources(some)}")
    return "\n\n".join(parts)


def speed_llamacpp() -> str:
    """Runs of tools/compare_llamacpp.py: tokens/s of both programs."""
    lines: list[Row] = []
    for path in sorted(HERE.glob("cpu_*.json")):
        told = json.loads(path.read_text())
        for comparison in told["comparisons"]:
            spec = comparison["spec"]
            for test in comparison["runs"]["pykvq"][0]["seconds"]:
                n = spec["n_decode"] if test.startswith("decode") else spec["n_prefill"]
                rate = {
                    program: n / statistics.median(run["seconds"][test] for run in runs)
                    for program, runs in comparison["runs"].items()
                }
                kv, (kind, depth) = comparison["kv"], test.split("@")
                line = {"model": told["model"]["name"], "kv": kv, "kind": kind, "depth": int(depth), "rate": rate}
                lines.append({**line, "file": path.name, "commit": told["commit"]})
    columns: Columns = {
        "model": lambda row: row["model"].split(".Q4")[0],
        "test": lambda row: f"{row['kind']} at depth {row['depth']:,}",
        "cache of pykvq": lambda row: row["kv"]["pykvq"],
        "of llama.cpp": lambda row: row["kv"]["llama.cpp"],
        "pykvq, tokens/s": lambda row: f"{row['rate']['pykvq']:.1f}",
        "llama.cpp": lambda row: f"{row['rate']['llama.cpp']:.1f}",
        "ratio": lambda row: f"{row['rate']['pykvq'] / row['rate']['llama.cpp']:.2f}",
        "file": lambda row: f"[{row['file']}]({row['file']}), commit {row['commit']}",
    }
    return table(columns, sorted(lines, key=lambda row: (row["model"], row["kind"], row["depth"])))


ISSUE_WIDTH = 8  # instructions that a Zen 5 core can take in a cycle


def kernels_cpu() -> str:
    """Runs of tools/attend_speed.c: what attention and encoding reach of the machine's limits, kernel by kernel."""
    parts: list[str] = []
    every = [json.loads(line) for line in (HERE / "cpu_kernels.jsonl").read_text().splitlines()]
    for rows in groups(every, lambda row: (row["n_threads"], row["isa"], row["head_dim"], row["n_rows"])).values():
        one = rows[0]
        columns: Columns = {
            "type": lambda row: row["kv"],
            "bytes / token": lambda row: f"{row['tile_bytes'] / 64:.0f}",
            "ns from memory": lambda row: f"{row['ns_memory']:.0f}",
            "GB/s": lambda row: f"{row['tile_bytes'] / row['ns_memory']:.1f}",
            "of the bandwidth": lambda row: f"{row['tile_bytes'] / row['ns_memory'] / row['bytes_per_ns']:.0%}",
            "ns from L2": lambda row: f"{row['ns_l2']:.0f}",
        }
        if one["instructions"]:
            columns |= {
                "instructions / element": lambda row: f"{row['instructions'] / (2 * 64 * row['head_dim']):.2f}",
                "of the issue limit": lambda row: (
                    f"{row['instructions'] / row['ns_l2'] / row['ghz'] / row['n_threads'] / ISSUE_WIDTH:.0%}"
                ),
                "us to encode K, V": lambda row: f"{row['ns_encode_k'] / 1000:.1f}, {row['ns_encode_v'] / 1000:.1f}",
            }
        title = (
            f"Decode attention over a tile of one KV head: {one['isa']}, {one['n_threads']} thread"
            f"{'s' if one['n_threads'] > 1 else ''}, head_dim {one['head_dim']}, {one['n_rows']} query heads; "
            f"memory is read at {one['bytes_per_ns']:.1f} GB/s"
        )
        source, machine = one["source"], one["source"]["machine"]
        made_with = [
            f"`{source['command']}` (tools/kernel_speed.py)",
            f"commit {source['commit']}",
            f"{machine['cpu']}, {machine['cores']} cores, load {source['load']}",
            source["date"][:10],
        ]
        parts.append(f"#### {title}\n\n{table(columns, rows)}\n\n<sub>{'; '.join(made_with)}</sub>")
    return "\n\n".join(parts)


def speed_gpu() -> str:
    """Attention and whole steps on the GPU."""
    attend, model = measured("h200_attend.json"), measured("h200_model.json")

    def case(row: Row) -> str:
        return f"{row['n_seq']} x {row['n_kv']:,} tokens, {row['group']} query heads"

    f16 = {case(row): row["us_per_layer"] for row in attend["rows"] if row["kv"] == "f16"}
    types = list(dict.fromkeys(row["kv"] for row in attend["rows"]))

    def time(row: Row) -> str:
        return f"{row['us_per_layer']:.0f} ({f16[case(row)] / row['us_per_layer']:.2f})"

    times = markdown(_pivot("us per layer (speed over f16)", types, groups(attend["rows"], case), time))
    return (
        f"#### Attention\n\n{times}\n\n<sub>`{attend['command']}`: {attend['what']}; {attend['device']}</sub>\n\n"
        f"#### A whole model\n\n{markdown(gpu_rates(model['rows']))}\n\n<sub>`{model['command']}`: {model['what']}; "
        f"{model['device']}</sub>"
    )


def gpu_rates(rows: Sequence[Row]) -> list[list[str]]:
    """Tokens per second, a line for each job and a column for each program and cache."""

    def job(row: Row) -> str:
        at = f"at depth {row['depth']:,}" if row["depth"] else "empty context"
        sequences = f"{row['n_seq']} sequences " if row["n_seq"] > 1 else ""
        return f"prefill of {row['prompt']:,}, {at}" if row["prompt"] else f"decode, {sequences}{at}"

    named: list[Row] = [{**row, "kv": f"{row['program']} {row['kv']}"} for row in rows]
    named.sort(key=lambda row: (row["prompt"] > 0, row["n_seq"], row["depth"], row["prompt"]))
    names = list(dict.fromkeys(f"{row['program']} {row['kv']}" for row in rows))
    return _pivot("tokens/s", names, groups(named, job), lambda row: f"{row['tokens_per_second']:,.0f}")


def readme_gpu() -> str:
    """A few caches, where llama.cpp's f16 was measured too."""
    rows = measured("h200_model.json")["rows"]
    shown = [("pykvq", "f16"), ("pykvq", "kivi4"), ("pykvq", "kivi2"), ("llama.cpp", "f16"), ("llama.cpp", "q4_0")]
    by_name = groups(rows, lambda row: (row["program"], row["kv"]))

    def job(row: Row) -> tuple[Any, ...]:
        return row["n_seq"], row["depth"], row["prompt"]

    both = {job(row) for row in by_name["llama.cpp", "f16"]}
    return markdown(gpu_rates([row for name in shown for row in by_name[name] if job(row) in both]))


def memory() -> str:
    """What is allocated, beside the plan and llama.cpp."""
    lines: list[Row] = []
    for path in sorted(HERE.glob("cpu_*.json")):
        told = json.loads(path.read_text())
        for c in told["comparisons"]:
            facts = c["runs"]["pykvq"][0]["facts"]
            peak = {p: statistics.median(run["peak_bytes"] for run in runs) for p, runs in c["runs"].items()}
            line = {"model": told["model"]["name"], "kv": c["kv"], "ctx": c["spec"]["n_ctx"], "file": path.name}
            if c["spec"].get("repeat_from") is not None:
                del peak["llama.cpp"]  # with the copies of its state that the tool made
            lines.append({**line, "plan": facts["plan_bytes"], "peak": peak})
    mib = 2**20
    columns: Columns = {
        "model": lambda row: row["model"].split(".Q4")[0],
        "cache": lambda row: " / ".join(dict.fromkeys(row["kv"].values())),
        "context": lambda row: f"{row['ctx']:,}",
        "plan, MiB": lambda row: f"{row['plan'] / mib:.1f}",
        "peak resident": lambda row: f"{row['peak']['pykvq'] / mib:.1f}",
        "peak / plan": lambda row: f"{row['peak']['pykvq'] / row['plan']:.4f}",
        "llama.cpp's peak": lambda row: f"{row['peak']['llama.cpp'] / mib:.1f}" if "llama.cpp" in row["peak"] else "",
        "file": lambda row: f"[{row['file']}]({row['file']})",
    }
    return table(columns, lines)


# ---- claims and choices ----


def effective_bits(kv: str, n_tokens: int, head_dim: int = 128, window: int = 128 + 32) -> float:
    """Bits per element of a context, with sink 64 and tail 64 to 127 (on average 96) in f16."""
    body = (tile_bits(kv, "k", head_dim) + tile_bits(kv, "v", head_dim)) / 2
    return (window * 16 + (n_tokens - window) * body) / n_tokens


def claims() -> str:
    """What papers claim, beside what the result files say."""
    return markdown([["claim", "whose", "measured here"], *_memory_claims(), *_speed_claims(), *_quality_claims()])


def _deepest() -> tuple[Row, Row]:
    """Decode of SmolLM2 with f16 and kivi2, at the greatest depth that both have."""
    rows = [row for row in benches(n_seqs=1, device="cpu") if row["n_gen"] and short(row) == "SmolLM2-135M"]
    f16, kivi2 = ({row["n_depth"]: row for row in rows if row["kv"] == kv} for kv in ("f16", "kivi2"))
    depth = max(f16.keys() & kivi2.keys())
    return f16[depth], kivi2[depth]


def _memory_claims() -> list[list[str]]:
    f16, kivi2 = _deepest()
    ratios = [f"{kv} {16 / effective_bits(kv, 131072):.1f}" for kv in ("kivi2", "tier2", "turbo2")]
    peak = [row["model_size"] + row["n_kv_bytes"] for row in (f16, kivi2)]
    at = f"SmolLM2 at depth {f16['n_depth']:,}, kivi2"
    ten = (
        f"{', '.join(ratios)} times, at 128k tokens with heads of 128, with scales, sink and tail. "
        "No type here stores the 1.6 bits that 10 times needs."
    )
    batch = f"{f16['n_kv_bytes'] / kivi2['n_kv_bytes']:.1f} times the sequences in the same memory for caches ({at})."
    nvfp4 = (
        f"{tile_bits('fp8', 'k', 128) / tile_bits('nvfp4', 'k', 128):.2f} times. "
        f"fp8: {_loss('fp8')}; nvfp4: {_loss('nvfp4')}."
    )
    return [
        ["about 10 times less memory", "headlines", ten],
        [
            "2.6 times less peak memory, with weights",
            "KIVI",
            f"{peak[0] / peak[1]:.2f} times ({at}, weights and cache).",
        ],
        ["4 times the batch", "KIVI", batch],
        ["NVFP4 holds 1.78 times what FP8 holds", "NVIDIA", nvfp4],
    ]


def _speed_claims() -> list[list[str]]:
    attend, model = measured("h200_attend.json")["rows"], measured("h200_model.json")["rows"]
    at = [row for row in attend if (row["n_kv"], row["group"]) == (131072, 4)]
    us = {(row["kv"], row["n_seq"]): row["us_per_layer"] for row in at}
    deep = ("pykvq", 0, 1, 131072)
    rows = [row for row in model if (row["program"], row["prompt"], row["n_seq"], row["depth"]) == deep]
    rate = {row["kv"]: row["tokens_per_second"] for row in rows}
    f16, kivi2 = _deepest()
    throughput = (
        f"kivi2 over f16, 128k tokens on an H200: {rate['kivi2'] / rate['f16']:.2f} for the 8B shape and one sequence; "
        f"attention alone {us['f16', 1] / us['kivi2', 1]:.2f}, for 8 sequences {us['f16', 8] / us['kivi2', 8]:.2f}. "
        f"CPU, SmolLM2 at depth {f16['n_depth']:,}: {kivi2['median_ts'] / f16['median_ts']:.2f}."
    )
    logits = (
        f"{us['f16', 1] / us['q4_0', 1]:.2f} times for 4 bits (q4_0) and 128k tokens on an H200; "
        "against 16-bit keys and for all of attention, where the bytes allow 3.6."
    )
    return [
        ["2.35 to 3.47 times the throughput", "KIVI: Llama-2-7B, A100, larger batches", throughput],
        ["logits up to 8 times as fast", "TurboQuant: H100, 4-bit against 32-bit keys", logits],
    ]


def _quality_claims() -> list[list[str]]:
    def stored(kv: str) -> str:
        return f"{kv} (stores {tile_bits(kv, 'k', 128):.2f} bits): {_loss(kv)}."

    return [
        ["quality neutral at 3.5 bits", "TurboQuant", stored("turbo3.5")],
        ["little loss at 2.5 bits", "TurboQuant", stored("turbo2.5")],
        ["almost no loss at 2 bits", "KIVI", f"{stored('kivi2')} {stored('tier2')}"],
    ]


def _loss(kv: str) -> str:
    """What a type costs each model."""
    loss = losses()
    by_model = {name: loss[name, kv] for name in MODELS.values() if (name, kv) in loss}
    return "; ".join(
        f"{name}: mean KL {number(row['mean_kl'])}, same top {row['same_top']:.1%}, "
        f"perplexity x {row['perplexity_ratio']:.3f}"
        for name, row in by_model.items()
    )


def choice() -> str:
    """Bits, loss and speed of the types that are worth choosing."""
    decode = groups([row for row in benches(n_seqs=1, device="cpu") if row["n_gen"]], lambda row: row["kv"])
    loss = losses()
    lines: list[list[str]] = []
    for kv in ("f16", "q8_0", "kivi4", "kvarn4", "q4_0", "tier3", "kvarn3", "turbo3", "tier2", "kivi2", "turbo2"):
        rows = [loss.get((name, kv)) for name in MODELS.values()]
        rates = sorted(
            (row for row in decode.get(kv, []) if short(row) == "SmolLM2-135M"), key=lambda row: row["n_depth"]
        )
        best = rates[-1] if rates else None
        lines.append([
            kv,
            f"{effective_bits(kv, 32768):.2f}" if kv != "f16" else "16.00",
            *(f"{number(row['mean_kl'])} / {row['same_top']:.1%}" if row else "" for row in rows),
            f"{best['median_ts']:.0f} at {best['n_depth']:,}" if best else "",
        ])  # fmt: skip
    heads = [f"{name}: mean KL / same top" for name in MODELS.values()]
    return markdown([["type", "bits at 32k, heads of 128", *heads, "decode of SmolLM2, tokens/s"], *lines])


def readme_types() -> str:
    """For the README: what types cost and bring, on SmolLM2."""
    of_smollm2 = {kv: row for (name, kv), row in losses().items() if name == "SmolLM2-135M"}
    rows = [row for row in benches(n_seqs=1, device="cpu") if short(row) == "SmolLM2-135M"]
    depth = _deepest()[0]["n_depth"]
    at = [row for row in rows if row["n_depth"] == depth]
    prefill = {row["kv"]: row for row in at if row["n_prompt"]}
    decode = sorted((row for row in at if row["n_gen"]), key=lambda row: -row["n_kv_bytes"])

    def loss(row: Row, name: str, form: str) -> str:
        return format(of_smollm2[row["kv"]][name], form) if row["kv"] in of_smollm2 else ""

    columns: Columns = {
        "type": lambda row: row["kv"],
        f"decode at depth {depth:,}, tokens/s": lambda row: f"{row['median_ts']:.0f}",
        "prefill of 512": lambda row: f"{prefill[row['kv']]['median_ts']:.0f}" if row["kv"] in prefill else "",
        "cache": lambda row: f"{row['n_kv_bytes'] / 2**20:.0f} MiB",
        "mean KL divergence from f16": lambda row: loss(row, "mean_kl", ".4f"),
        "same top token": lambda row: loss(row, "same_top", ".1%"),
    }
    return table(columns, decode)


PARTS: dict[str, Callable[[], str]] = {
    "quality": quality,
    "oracle": oracle,
    "llamacpp": llamacpp,
    "settings": settings,
    "mixes": mixes,
    **{question: ablation(question) for question in ("signs", "metadata", "rotation", "scale", "key_bias")},
    "retrieval": retrieval,
    "speed_cpu": lambda: speed("cpu"),
    "bench_gpu": lambda: speed("cuda"),
    "speed_llamacpp": speed_llamacpp,
    "kernels_cpu": kernels_cpu,
    "speed_gpu": speed_gpu,
    "memory": memory,
    "claims": claims,
    "choice": choice,
    "readme_gpu": readme_gpu,
    "readme_types": readme_types,
}


def render(page: str) -> str:
    """A page with its tables written anew."""

    def part(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n\n{PARTS[match[1]]() or 'Not measured yet.'}\n\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", part, page, flags=re.DOTALL)


def main() -> None:
    """Write the pages."""
    for path in PAGES:
        path.write_text(render(path.read_text()))


if __name__ == "__main__":
    main()
