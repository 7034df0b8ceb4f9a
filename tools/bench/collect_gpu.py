"""Result files of a GPU run: python tools/bench/collect_gpu.py FOLDER, a folder that tools/h200_check.sh has written.

Reads what the timers printed, a JSON object per line, and writes h200_*.json beside this script: which GPU, which
command, what was timed, rows. Lines of llama.cpp (`llama-bench -o jsonl`, the table of `llama-batched-bench`) become
rows of the same form, so that both programs stand in one table.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Row = dict[str, Any]
WHAT = {
    "attend": "decode attention, 8 KV heads, head_dim 128, sink and tail 64 tokens, 32 launches per step over at least "
    "6 GiB of distinct pages, best of 10 steps, launch and upload of the step included",
    "prefill": "attention of new tokens over a cache and themselves, 32 query heads, 8 KV heads, head_dim 128",
    "linear": "products of a decode step, matrices of the Llama-3.1-8B shape, distinct weights larger than L2",
    "product": "one matrix product through the backend, best of 3 steps of 10: activations to halves, matrix "
    "to halves, product; an operation is a multiplication or an addition",
}
COMMANDS = {"linear": "linear time", "product": "product time"}
MODEL = (
    "Llama-3.1-8B shape, random Q4_K weights (output Q6_K), cache of random content; pykvq: best step of 36; "
    "llama.cpp: llama-bench -fa 1, llama-batched-bench -npp 8192 -ntg 32 -npl 32; the same GPU and run"
)


def objects(path: Path) -> list[Row]:
    """JSON lines of a file, other lines left out; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{")]


def of_pykvq(rows: Iterable[Row]) -> list[Row]:
    """Rows of `kvq_cuda_check model`."""
    out: list[Row] = []
    for row in rows:
        rate = row.get("decode_tokens_per_second", row.get("prefill_tokens_per_second"))
        out.append({"program": "pykvq", "kv": row["kv"], "n_seq": row.get("n_seq", 1), "depth": row["depth"]})
        out[-1] |= {"prompt": row.get("prompt", 0), "tokens_per_second": rate}
    return out


def of_llamacpp(folder: Path) -> list[Row]:
    """Rows of llama-bench and of llama-batched-bench's table."""
    out = [
        {"program": "llama.cpp", "kv": row["type_k"], "n_seq": 1, "depth": row["n_depth"]}
        | {"prompt": row["n_prompt"], "tokens_per_second": round(row["avg_ts"], 1)}
        for row in objects(folder / "llama.jsonl")
    ]
    for path in sorted(folder.glob("llama_batched*.txt")):
        kv = path.stem.removeprefix("llama_batched").strip("_") or "f16"
        for line in path.read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == 10 and cells[0].isdigit():
                out.append({"program": "llama.cpp", "kv": kv, "n_seq": int(cells[2]), "depth": int(cells[0])})
                out[-1] |= {"prompt": 0, "tokens_per_second": float(cells[7])}
    return out


def write(name: str, device: str, command: str, what: str, rows: list[Row]) -> None:
    """h200_NAME.json, a row per line."""
    head = {"device": device, "command": command, "what": what}
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    text = json.dumps(head, indent=1)[:-2] + ',\n "rows": [\n' + lines + "\n ]\n}\n"
    (HERE / f"h200_{name}.json").write_text(text)


def main() -> None:
    """Write every file that the folder has rows for."""
    folder = Path(sys.argv[1])
    device = (folder / "device.txt").read_text().strip()
    for name, what in WHAT.items():
        command = COMMANDS.get(name, name)
        if rows := objects(folder / f"{command.replace(' ', '_')}.jsonl"):
            write(name, device, f"kvq_cuda_check {command}", what, rows)
    models = [row for path in sorted(folder.glob("model*.jsonl")) for row in objects(path)]
    if rows := of_pykvq(models) + of_llamacpp(folder):
        write("model", device, "kvq_cuda_check model 8b.gguf KV N_SEQ DEPTH...", MODEL, rows)


if __name__ == "__main__":
    main()
