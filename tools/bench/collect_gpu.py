"""Result files of a GPU run: python tools/bench/collect_gpu.py FOLDER, a folder that tools/h200_check.sh has written.

Reads what the timers printed, a JSON object per line, and puts it into h200_*.json beside this script. Lines of
llama.cpp (`llama-bench -o jsonl`, the table of `llama-batched-bench`) become rows of the same form, so that both
programs stand in one table.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Row = dict[str, Any]
FILES = {"attend": "attend", "prefill": "prefill", "linear": "linear", "product": "product_time"}  # of a folder


def objects(path: Path) -> list[Row]:
    """JSON lines of a file, other lines left out; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{")]


def of_pykvq(rows: Iterable[Row]) -> list[Row]:
    """Rows of `kvq_cuda_check model`."""
    out: list[Row] = []
    for row in rows:
        key = next(name for name in row if name.endswith("_tokens_per_second"))
        prompt = 0 if key.startswith("decode") else int(key.split("_")[1])
        out.append({"program": "pykvq", "kv": row["kv"], "n_seq": row.get("n_seq", 1), "depth": row["depth"]})
        out[-1] |= {"prompt": prompt, "tokens_per_second": row[key]}
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


def write(name: str, device: str, rows: list[Row]) -> None:
    """New rows for h200_NAME.json, a row per line; what it says of command and conditions stays."""
    path = HERE / f"h200_{name}.json"
    result = json.loads(path.read_text()) | {"device": device, "rows": rows}
    parts = [f" {json.dumps(key)}: {_text(value)}" for key, value in result.items()]
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _text(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(value)
    return "[\n" + ",\n".join("  " + json.dumps(row) for row in value) + "\n ]"


def main() -> None:
    """Write every file that the folder has rows for."""
    folder = Path(sys.argv[1])
    device = (folder / "device.txt").read_text().strip()
    for name, file in FILES.items():
        if rows := objects(folder / f"{file}.jsonl"):
            write(name, device, rows)
    models = [row for path in sorted(folder.glob("model*.jsonl")) for row in objects(path)]
    if rows := of_pykvq(models) + of_llamacpp(folder):
        write("model", device, rows)


if __name__ == "__main__":
    main()
