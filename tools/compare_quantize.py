"""Quantize a model with pykvq and with llama.cpp to the same types; compare what is lost, and the time it takes.

    pip install . llama-cpp-python
    python tools/compare_quantize.py quality MODEL-f16.gguf --text TEXT --save tools/bench/quantize_X.jsonl
    python tools/compare_quantize.py quality MODEL-f16.gguf --text TEXT --imatrix M.imatrix --types Q2_K --save ...
    python tools/compare_quantize.py speed MODEL-f16.gguf --threads 2 --save tools/bench/quantize_X.jsonl
    python tools/compare_quantize.py table docs/quantization.md tools/bench/quantize_*.jsonl

quality  Both files are run by pykvq with float activations over windows of the text, whose later tokens are scored:
         perplexity, KL divergence from the model as it was, and the root mean squared error of every tensor. The
         ratio of the perplexities has a standard error from the differences token by token.
speed    Both programs write their file in turns, into a folder in memory; the median of the repeats is kept, wall
         clock and CPU time. Measure on an idle machine.
table    Puts the tables of these results into the page.

MODEL must have float matrices. llama.cpp's file is made by its llama_model_quantize, which is what llama-quantize
calls. Types that the result file has for this model, commit and setting are not measured again.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import importlib.metadata
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pykvq import Engine, GGUFFile, Model
from pykvq._ffi import check, ffi, lib
from pykvq.evaluation.divergence import Windows
from pykvq.evaluation.metrics import Divergence, log_softmax
from pykvq.imatrix import ImportanceMatrix
from pykvq.quantize import MIXES, quantize
from pykvq.results import Columns, ResultFile, Row, cells, markdown, origin, read_rows
from pykvq.weights import convert_rows, weight_type

PROGRAMS = ("pykvq", "llama.cpp")
TYPES = [name for name in MIXES if name not in ("F32", "F16", "BF16")]
SLAB_ELEMENTS = 1 << 22


# ---- the two programs ----


def by_pykvq(source: Path, target: Path, mix: str, imatrix: Path | None, threads: int) -> None:
    """Write target."""
    matrix = ImportanceMatrix.open(imatrix) if imatrix else None
    for _ in quantize(source, target, mix, imatrix=matrix, force=True, threads=threads):
        pass


def by_llama_cpp(source: Path, target: Path, mix: str, imatrix: Path | None, threads: int) -> None:
    """Write target."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = MIXES[mix].file_type, threads
    entries = imatrix_entries(imatrix) if imatrix else None
    if entries is not None:
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    if llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params)) != 0:
        raise RuntimeError(f"llama.cpp: cannot quantize {source} to {mix}")


def imatrix_entries(path: Path) -> Any:
    """What llama-quantize reads from the file: names and the mean squares of columns."""
    from llama_cpp import llama_cpp

    found = ImportanceMatrix.open(path).entries
    array = (llama_cpp.llama_model_imatrix_data * (len(found) + 1))()  # the last one has no name
    for slot, (name, entry) in zip(array, found.items(), strict=False):
        values = (entry.sums / entry.n_tokens).astype(np.float32)
        data = (ctypes.c_float * len(values))(*values.tolist())
        slot.name, slot.data, slot.size = name.encode(), ctypes.cast(data, ctypes.POINTER(ctypes.c_float)), len(values)
    return array


WRITERS = dict(zip(PROGRAMS, (by_pykvq, by_llama_cpp), strict=True))


# ---- quality ----


class Losses:
    """The model as it was, and how far files are from it on the same windows of text."""

    def __init__(self, path: Path, text: str, ctx: int, chunks: int, n_scored: int, threads: int) -> None:
        with Model.open(path) as model:
            self.windows = Windows(model, text, ctx=ctx, count=chunks, n_scored=n_scored)
        self.threads = threads
        self.reference = list(self.logits(path))

    def logits(self, path: Path) -> Iterator[np.ndarray]:
        """Of each window: (n_scored, n_vocab)."""
        w = self.windows
        with (
            Model.open(path) as model,
            Engine(model, ctx=w.ctx, batch=w.ctx, logits=w.ctx, threads=self.threads, exact=True) as engine,
            engine.sequence() as sequence,
        ):
            sequence.keep_logits(all_tokens=True)
            for tokens in w.tokens:
                sequence.rewind(0)
                sequence.push(tokens)
                engine.step([sequence])
                yield sequence.logits()[-w.n_scored :].copy()

    def of(self, path: Path) -> tuple[Row, np.ndarray]:
        """Figures against the model as it was, and the loss of each token."""
        figures, losses = Divergence(), []
        for reference, logits, targets in zip(self.reference, self.logits(path), self.windows.targets, strict=True):
            figures.add(reference, logits, targets)
            losses.append(-log_softmax(logits)[np.arange(len(targets)), targets])
        wanted = ("perplexity", "perplexity_f16", "perplexity_ratio", "mean_kl", "mean_kl_error", "same_top")
        summary = figures.summary()
        return {name: summary[name] for name in wanted}, np.concatenate(losses)


def tensor_errors(original: Path, path: Path) -> dict[str, float]:
    """Root mean squared error of each tensor that is not as it was."""
    errors: dict[str, float] = {}
    with GGUFFile.open(original) as before, GGUFFile.open(path) as after:
        place = {tensor.name: i for i, tensor in enumerate(after.tensors)}
        for i, tensor in enumerate(before.tensors):
            if after.tensors[place[tensor.name]].type == tensor.type:
                continue
            pairs = zip(values(before, i), values(after, place[tensor.name]), strict=True)
            total = sum(float(np.square(x - y).sum(dtype=np.float64)) for x, y in pairs)
            errors[tensor.name] = (total / np.prod(tensor.shape)) ** 0.5
    return errors


def values(file: GGUFFile, index: int) -> Iterator[np.ndarray]:
    """A tensor's numbers, some rows at a time."""
    tensor, raw = file.tensors[index], ffi.new("pykvq_gguf_tensor *")
    check(lib.pykvq_gguf_tensor_at(file.handle, index, raw))
    kind, n_per_row = weight_type(tensor.type), tensor.shape[-1]
    n_rows = int(np.prod(tensor.shape)) // n_per_row
    n_slab = max(1, SLAB_ELEMENTS // n_per_row)
    for row in range(0, n_rows, n_slab):
        shape = min(n_slab, n_rows - row), n_per_row
        yield convert_rows(raw.data + kind.n_bytes(row * n_per_row), kind, weight_type("F32"), shape)[0].view(
            np.float32
        )


def quality(arguments: argparse.Namespace, file: ResultFile, common: Row) -> Iterator[Row]:
    """A row for each type."""
    text = arguments.text.read_text()
    setting = {
        "text": arguments.text.name,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "ctx": arguments.ctx,
        "chunks": arguments.chunks,
        "n_scored": arguments.ctx * 3 // 4,
        "imatrix": arguments.imatrix and ImportanceMatrix.open(arguments.imatrix).dataset,
    }
    todo = missing("quality", arguments, file, common, setting)
    if not todo:
        return
    losses = Losses(arguments.model, text, setting["ctx"], setting["chunks"], setting["n_scored"], arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        for mix in todo:
            row: Row = {"task": "quality", "type": mix, "setting": setting}
            tokens, errors = {}, {}
            for program in PROGRAMS:
                path = Path(folder) / "model.gguf"
                WRITERS[program](arguments.model, path, mix, arguments.imatrix, arguments.threads)
                row[program], tokens[program] = losses.of(path)
                row[program]["n_bytes"] = path.stat().st_size
                errors[program] = tensor_errors(arguments.model, path)
                path.unlink()
            yield {**row, **compared(tokens, errors)}


def compared(tokens: dict[str, np.ndarray], errors: dict[str, dict[str, float]]) -> Row:
    """Ours over theirs."""
    difference = tokens["pykvq"] - tokens["llama.cpp"]
    ratio = float(np.exp(difference.mean()))
    ours, theirs = (errors[program] for program in PROGRAMS)
    rmse = {name: ours[name] / theirs[name] for name in ours}
    worst = max(rmse, key=lambda name: rmse[name])
    return {
        "perplexity_over_llama.cpp": ratio,
        "perplexity_over_llama.cpp_error": float(ratio * difference.std(ddof=1) / len(difference) ** 0.5),
        "rmse_over_llama.cpp": statistics.geometric_mean(rmse.values()),
        "worst_rmse_over_llama.cpp": {"tensor": worst, "ratio": rmse[worst]},
    }


# ---- speed ----


def speed(arguments: argparse.Namespace, file: ResultFile, common: Row) -> Iterator[Row]:
    """A row for each type."""
    setting = {"threads": arguments.threads, "repeats": arguments.repeats}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for mix in missing("speed", arguments, file, common, setting):
            wall: dict[str, list[float]] = {program: [] for program in PROGRAMS}
            cpu: dict[str, list[float]] = {program: [] for program in PROGRAMS}
            for i in range(arguments.repeats):
                for program in PROGRAMS if i % 2 == 0 else reversed(PROGRAMS):
                    begin = time.perf_counter(), time.process_time()
                    WRITERS[program](arguments.model, Path(folder) / "out.gguf", mix, None, arguments.threads)
                    wall[program].append(time.perf_counter() - begin[0])
                    cpu[program].append(time.process_time() - begin[1])
            row: Row = {"task": "speed", "type": mix, "setting": setting}
            for program in PROGRAMS:
                row[program] = {"seconds": wall[program], "cpu_seconds": cpu[program]}
            yield {**row, "times_as_fast": of_pairs(wall), "times_as_fast_cpu": of_pairs(cpu)}


def of_pairs(seconds: dict[str, list[float]]) -> float:
    """llama.cpp's time over ours, the median of the pairs."""
    return statistics.median(theirs / ours for ours, theirs in zip(*(seconds[p] for p in PROGRAMS), strict=True))


# ---- results ----


def key(task: str, mix: str, common: Row, setting: Row) -> Row:
    """What a row must have to be taken instead of a new measurement."""
    return {"task": task, "type": mix, "setting": setting, **{name: common[name] for name in ("model", "commit")}}


def missing(task: str, arguments: argparse.Namespace, file: ResultFile, common: Row, setting: Row) -> list[str]:
    """Types that are not measured yet."""
    wanted = arguments.types.upper().split(",") if arguments.types else TYPES
    return [mix for mix in wanted if file.find(key(task, mix, common, setting)) is None]


QUALITY: Columns = {
    "type": lambda row: row["type"],
    "MiB": lambda row: f"{row['pykvq']['n_bytes'] / 2**20:.1f}",
    "perplexity / unquantized": lambda row: f"{row['pykvq']['perplexity_ratio']:.4f}",
    "llama.cpp's": lambda row: f"{row['llama.cpp']['perplexity_ratio']:.4f}",
    "ours / llama.cpp's": lambda row: (
        f"{row['perplexity_over_llama.cpp']:.4f} ± {row['perplexity_over_llama.cpp_error']:.4f}"
    ),
    "mean KL": lambda row: f"{row['pykvq']['mean_kl']:.5f}",
    "llama.cpp's KL": lambda row: f"{row['llama.cpp']['mean_kl']:.5f}",
    "RMSE / llama.cpp's": lambda row: f"{row['rmse_over_llama.cpp']:.4f}",
    "worst tensor": lambda row: f"{row['worst_rmse_over_llama.cpp']['ratio']:.4f}",
}
SPEED: Columns = {
    "type": lambda row: row["type"],
    "pykvq, s": lambda row: f"{statistics.median(row['pykvq']['seconds']):.2f}",
    "llama.cpp, s": lambda row: f"{statistics.median(row['llama.cpp']['seconds']):.2f}",
    "times as fast": lambda row: f"{row['times_as_fast']:.2f}",
    "times as fast, CPU time": lambda row: f"{row['times_as_fast_cpu']:.2f}",
}
MARK = "<!-- tables of tools/compare_quantize.py -->\n"


def tables(files: list[Path]) -> Iterator[str]:
    """Of all rows, the newest of each type, model and setting."""
    newest = {title(row) + row["type"]: row for file in files for row in read_rows(file)}
    rows = sorted(newest.values(), key=lambda row: TYPES.index(row["type"]))
    for heading in dict.fromkeys(title(row) for row in newest.values()):
        group = [row for row in rows if title(row) == heading]
        yield f"{heading}\n\n{markdown(cells(QUALITY if group[0]['task'] == 'quality' else SPEED, group))}\n"


def with_tables(page: str, files: list[Path]) -> str:
    """The page with new tables behind its mark."""
    return page[: page.index(MARK) + len(MARK)] + "".join(f"\n{table}" for table in tables(files))


def title(row: Row) -> str:
    """What the rows of a table share."""
    s, model = row["setting"], f"{row['model']['file']} (sha256 {row['model']['sha256'][:12]})"
    peer = f"llama-cpp-python {row['versions']['llama_cpp_python']}"
    if row["task"] == "speed":
        return f"**Speed**, {model}, {s['threads']} threads, {row['machine']['cpu']}, {peer}:"
    importance = f", importance matrix of {s['imatrix']}" if s["imatrix"] else ""
    scored = f"{s['chunks']} windows of {s['ctx']} tokens of {s['text']}, the last {s['n_scored']} of each scored"
    return f"**Quality**, {model}{importance}, {scored}, {peer}:"


def main() -> None:
    """Measure, or print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    for name in "quality", "speed":
        task = tasks.add_parser(name)
        task.add_argument("model", type=Path)
        task.add_argument("--types", help="comma-separated; default: all")
        task.add_argument("--threads", type=int, default=2)
        task.add_argument("--save", type=Path, required=True, help="JSON lines, one for each type")
    tasks.choices["quality"].add_argument("--text", type=Path, required=True)
    tasks.choices["quality"].add_argument("--ctx", type=int, default=512)
    tasks.choices["quality"].add_argument("--chunks", type=int, default=8)
    tasks.choices["quality"].add_argument("--imatrix", type=Path)
    tasks.choices["speed"].add_argument("--repeats", type=int, default=3)
    table = tasks.add_parser("table")
    table.add_argument("page", type=Path)
    table.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.task == "table":
        arguments.page.write_text(with_tables(arguments.page.read_text(), arguments.files))
        return
    common = origin(str(arguments.model))
    common["versions"]["llama_cpp_python"] = importlib.metadata.version("llama-cpp-python")
    file = ResultFile(arguments.save)
    for row in {"quality": quality, "speed": speed}[arguments.task](arguments, file, common):
        file.append({**row, **common})
        print(cells(QUALITY if arguments.task == "quality" else SPEED, [row])[1], flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
