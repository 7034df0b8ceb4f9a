"""What the CPU's kernels reach of the machine's limits: builds tools/attend_speed.c, runs it, and keeps its rows.

    cmake -S . -B build/c -DPYKVQ_PYTHON=OFF && cmake --build build/c
    python tools/kernel_speed.py build/c --threads 1,2 --save tools/bench/cpu_kernels.jsonl

Rows of the same type, instruction set, threads and heads are replaced. Measure on an idle machine.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import pykvq
from pykvq.results import Row, origin, read_rows

ROOT = Path(__file__).parents[1]
KEY = ("kv", "isa", "n_threads", "head_dim", "n_rows")


def build(library: Path, program: Path) -> None:
    """The timer, with a build's kvq_core."""
    folders = [f"-I{ROOT / 'native' / name}" for name in ("include", "src")]
    command = ["cc", "-O2", "-D_GNU_SOURCE", *folders, ROOT / "tools" / "attend_speed.c", library, "-o", program]
    subprocess.run([*command, "-lm", "-ldl", "-pthread"], check=True)


def measure(program: Path, options: list[str]) -> list[Row]:
    """Rows of a run, each with what it was measured with."""
    load = os.getloadavg()[0]
    done = subprocess.run([program, *options], check=True, stdout=subprocess.PIPE, text=True)
    made_with = origin(None)
    source = {name: made_with[name] for name in ("commit", "date", "machine")}
    source = {"command": " ".join(["attend_speed", *options]), **source, "load": round(load, 1)}
    return [json.loads(line) | {"source": source} for line in done.stdout.splitlines() if line.startswith("{")]


def merge(old: list[Row], new: list[Row]) -> list[Row]:
    """New rows instead of old ones of the same key, then by threads and heads."""
    rows = {tuple(row[name] for name in KEY): row for row in [*old, *new]}
    return sorted(rows.values(), key=lambda row: [row[name] for name in KEY[1:]])


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("build", type=Path, help="a folder that holds libkvq_core.a")
    add("--threads", default="1,2", help="default 1,2")
    add("--head-dim", type=int, default=64, help="default 64")
    add("--group", type=int, default=3, help="query heads per KV head; default 3")
    add("--kv", default=",".join(kv.name for kv in pykvq.kv_types()), help="default: all types")
    add("--save", type=Path, help="a file of JSON lines")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "attend_speed"
        build(args.build / "libkvq_core.a", program)
        for n_threads in args.threads.split(","):
            heads = ["-d", str(args.head_dim), "-g", str(args.group)]
            rows = measure(program, ["-c", "-j", "-t", n_threads, *heads, *args.kv.split(",")])
            for row in rows:
                print(json.dumps({name: value for name, value in row.items() if name != "source"}), flush=True)
            if args.save:
                old = read_rows(args.save) if args.save.exists() else []
                args.save.write_text("".join(json.dumps(row) + "\n" for row in merge(old, rows)))


if __name__ == "__main__":
    main()
