"""Measure pykvq and llama.cpp on the same GGUF file, on this machine, in turns: decode, prefill, memory, start.

    pip install . llama-cpp-python
    python tools/compare_llamacpp.py MODEL.gguf
    python tools/compare_llamacpp.py MODEL.gguf --threads 2 --depths 0,2048,8192 --repeats 5 --json tools/bench/X.json
    python tools/compare_llamacpp.py MODEL.gguf --kv kivi2=q4_0 --kv q8_0=q8_0      # pykvq's type = llama.cpp's type
    CMAKE_ARGS=-DGGML_CUDA=ON pip install llama-cpp-python && python tools/compare_llamacpp.py MODEL.gguf --device cuda
    python tools/compare_llamacpp.py MODEL.gguf --device cuda --llama-bench BUILD/bin/llama-bench --kv kivi4=q4_0

What is measured. A run is a fresh process that opens the file, makes a context and warms up; nothing of that is timed.
Then, on random token ids (the same for both programs):
  prefill at depth 0  512 tokens into the empty cache
  decode at depth D   the cache is filled to D tokens, then tokens are fed one at a time, each with its logits
  prefill at depth D  512 tokens right after that decode, so a few tokens deeper than D
With --repeat-from N, llama.cpp is fed only the first N tokens of a depth; the rest of its cache is those tokens' saved
state over and over, at positions of its own. How long a step takes does not depend on what the cache holds, and its
prefill at depth 32k with a quantized cache would take an hour. pykvq is always fed all tokens.

The programs take turns, and who goes first alternates, so that a drift of the machine's clock hits both. Printed is the
median of the repeats, with the least and the greatest. Measure on an idle machine: both programs spin while they wait.

llama.cpp runs through its own C API with n_batch = n_ubatch = --batch, as many threads for decode as for prefill, flash
attention on, the file mapped, everything else as it comes. `pip install llama-cpp-python` compiles it for this
machine, which is what it should be measured as; LLAMA_CPP_LIB_PATH names a folder with libraries built otherwise. With
--device cuda all of both programs is on the GPU, and peak memory is what of the GPU's is in use at the end. With
--llama-bench that program of llama.cpp's measures instead, one repetition per run, same settings: its prefill is at the
depth exactly, and it does not tell its memory.

Peak memory is the peak resident set minus what was resident before the file was opened (interpreter and libraries). For
pykvq it is set against the plan, weights (the mapped file) included. "First token" is the time from starting the
process `pykvq generate MODEL` to the first byte of its output, with the file in the page cache.
"""

import argparse
import ctypes
import datetime
import hashlib
import json
import os
import platform
import random
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP_TOKENS = 64
EVERY_LAYER = 1 << 20
PROGRAMS = ("pykvq", "llama.cpp")


# ---- one run, in its own process ----


class Pykvq:
    """pykvq through its Python API."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import pykvq

        self.before = used_bytes(spec["device"], "VmRSS")
        self.model = pykvq.Model.open(spec["path"])
        options = {"ctx": spec["n_ctx"], "batch": spec["n_batch"], "threads": spec["n_threads"], "kv": spec["kv"]}
        self.engine = pykvq.Engine(self.model, seqs=1, device=spec["device"], **options)
        self.sequence = self.engine.sequence()
        self.n_vocab = self.model.info.n_vocab

    def feed(self, tokens: list[int]) -> None:
        """Feed at most a batch of tokens; the logits of the last one are computed."""
        self.sequence.push(tokens)
        self.engine.step([self.sequence])
        if self.sequence.n_pending:
            raise RuntimeError("pykvq: a batch took more than one step")

    def clear(self) -> None:
        """Empty the cache."""
        self.sequence.rewind(0)

    def facts(self) -> dict[str, Any]:
        """What the report should know beside the times."""
        plan = self.engine.plan
        return {
            "plan_bytes": plan.n_total_bytes,
            "plan_weight_bytes": plan.n_weight_bytes,
            "plan_kv_bytes": plan.n_kv_bytes,
            "plan_scratch_bytes": plan.n_scratch_bytes,
            "kv_bits_per_element": plan.kv_bits_per_element,
        }


class LlamaCpp:
    """llama.cpp through llama-cpp-python's bindings of its C API."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        on_gpu = spec["device"] == "cuda"
        if on_gpu and not llama_cpp.llama_supports_gpu_offload():
            raise RuntimeError("llama.cpp: built without CUDA; CMAKE_ARGS=-DGGML_CUDA=ON pip install llama-cpp-python")
        self.before = used_bytes(spec["device"], "VmRSS")
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = EVERY_LAYER if on_gpu else 0
        self.model = llama_cpp.llama_model_load_from_file(spec["path"].encode(), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp: cannot open {spec['path']}")
        kv, n_batch = spec["kv"], spec["n_batch"]
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = spec["n_ctx"], n_batch, n_batch
        params.n_threads = params.n_threads_batch = spec["n_threads"]
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = getattr(llama_cpp, f"GGML_TYPE_{kv.upper()}")
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp: cannot make a context with KV type {kv}")
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def feed(self, tokens: list[int]) -> None:
        """Feed at most a batch of tokens; the logits of the last one are computed."""
        array = (self.api.llama_token * len(tokens))(*tokens)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(tokens))) != 0:
            raise RuntimeError("llama.cpp: llama_decode failed")
        self.api.llama_synchronize(self.context)

    def extend(self, n_tokens: int) -> None:
        """Fill the cache up to n_tokens with what it holds, over and over."""
        buffer = (ctypes.c_uint8 * self.api.llama_state_seq_get_size(self.context, 0))()
        self.api.llama_state_seq_get_data(self.context, buffer, len(buffer), 0)
        state = extended_state(bytes(buffer), n_tokens)
        array = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if self.api.llama_state_seq_set_data(self.context, array, len(state), 0) != len(state):
            raise RuntimeError(f"llama.cpp: a state of {n_tokens} tokens was not taken")

    def clear(self) -> None:
        """Empty the cache."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def facts(self) -> dict[str, Any]:
        """What the report should know beside the times."""
        return {"system": self.api.llama_print_system_info().decode()}


def extended_state(state: bytes, n_tokens: int) -> bytes:
    """A saved llama.cpp sequence of fewer tokens, repeated until it has n_tokens.

    Layout (llama.cpp's llama-kv-cache.cpp, one stream): magic, sequence, streams, cells; per cell its position, the
    number of its sequences, the sequence; transposed V, layers; for K of each layer and then V, a type, the bytes of a
    row, the rows.
    """
    magic, sequence, n_streams, n_cells = struct.unpack_from("<4I", state)
    at = 16 + 12 * n_cells
    transposed, n_layers = struct.unpack_from("<2I", state, at)
    if n_streams != 1 or transposed or struct.unpack_from("<iIi", state, 16) != (0, 1, 0):
        raise RuntimeError("llama.cpp: its state has another layout than this tool knows")
    parts = [struct.pack("<4I", magic, sequence, 1, n_tokens)]
    parts += [struct.pack("<iIi", position, 1, 0) for position in range(n_tokens)]
    parts.append(struct.pack("<2I", 0, n_layers))
    at += 8
    for _ in range(2 * n_layers):
        row_bytes = struct.unpack_from("<iQ", state, at)[1]
        rows = state[at + 12 : at + 12 + row_bytes * n_cells]
        parts += [state[at : at + 12], (rows * -(-n_tokens // n_cells))[: row_bytes * n_tokens]]
        at += 12 + row_bytes * n_cells
    if at != len(state):
        raise RuntimeError("llama.cpp: its state has another layout than this tool knows")
    return b"".join(parts)


def resident_bytes(field: str) -> int:
    """VmRSS: resident now; VmHWM: the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def used_bytes(device: str, field: str) -> int:
    """Of the GPU's memory, by all processes; of this process's, without one."""
    return resident_bytes(field) if device == "cpu" else int(ask_gpu("memory.used")) * 2**20


def ask_gpu(what: str) -> str:
    """A property of the first GPU."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run_once(spec: dict[str, Any]) -> dict[str, Any]:
    """All measurements of one program; seconds by name."""
    program = {"pykvq": Pykvq, "llama.cpp": LlamaCpp}[spec["program"]]
    target = program(spec)
    rng = random.Random(1)

    def feed(n_tokens: int, chunk: int = spec["n_batch"]) -> float:
        tokens = [rng.randrange(target.n_vocab) for _ in range(n_tokens)]
        begin = time.perf_counter()
        for first in range(0, n_tokens, chunk):
            target.feed(tokens[first : first + chunk])
        return time.perf_counter() - begin

    feed(spec["n_batch"])
    feed(WARM_UP_TOKENS, chunk=1)
    target.clear()
    seconds = {"prefill@0": feed(spec["n_prefill"])}
    target.clear()
    n_fed = 0
    for depth in spec["depths"]:
        n_real = min(depth, max(n_fed, spec["repeat_from"] or depth)) if isinstance(target, LlamaCpp) else depth
        feed(n_real - n_fed)
        if n_real < depth:
            target.extend(depth)
        seconds[f"decode@{depth}"] = feed(spec["n_decode"], chunk=1)
        n_fed = depth + spec["n_decode"]
        if depth > 0 and depth in spec["prefill_depths"]:
            seconds[f"prefill@{depth}"] = feed(spec["n_prefill"])
            n_fed += spec["n_prefill"]
    peak = used_bytes(spec["device"], "VmHWM") - target.before
    return {"seconds": seconds, "peak_bytes": peak, "facts": target.facts()}


def llama_bench_commands(spec: dict[str, Any]) -> list[list[str]]:
    """What measures with llama-bench what `run_once` does: prefill at some depths, decode at others."""
    on_gpu = spec["device"] == "cuda"
    common = ["-m", spec["path"], "-o", "jsonl", "-r", "1", "-fa", "1", "-t", str(spec["n_threads"])]
    common += ["-b", str(spec["n_batch"]), "-ub", str(spec["n_batch"]), "-ctk", spec["kv"], "-ctv", spec["kv"]]
    common += ["-ngl", str(EVERY_LAYER)] if on_gpu else ["-ngl", "0", "-dev", "none"]
    tests = {
        ("-p", str(spec["n_prefill"]), "-n", "0"): {0, *spec["prefill_depths"]},
        ("-p", "0", "-n", str(spec["n_decode"])): set(spec["depths"]),
    }
    return [[spec["llama_bench"], *common, *test, "-d", ",".join(map(str, sorted(at)))] for test, at in tests.items()]


def read_llama_bench(output: str, device: str) -> dict[str, Any]:
    """The result of a run from what llama-bench printed (-o jsonl)."""
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if device == "cuda" and not all("CUDA" in row["backends"] for row in rows):
        raise SystemExit(f"llama-bench: built without CUDA; its backends are {rows[0]['backends']}")
    seconds = {}
    for row in rows:
        kind = "prefill" if row["n_prompt"] else "decode"
        seconds[f"{kind}@{row['n_depth']}"] = row["avg_ns"] / 1e9
    told = ("build_commit", "build_number", "backends", "gpu_info", "cpu_info", "flash_attn", "n_ubatch")
    return {"seconds": seconds, "peak_bytes": None, "facts": {name: rows[0][name] for name in told}}


def run_llama_bench(spec: dict[str, Any]) -> dict[str, Any]:
    """All measurements of llama.cpp, by its own program."""
    output = ""
    for command in llama_bench_commands(spec):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}\n{done.stderr}")
        output += done.stdout
    return read_llama_bench(output, spec["device"])


def run_in_child(spec: dict[str, Any]) -> dict[str, Any]:
    """`run_once` in a fresh process."""
    if spec["program"] == "llama.cpp" and spec["llama_bench"]:
        return run_llama_bench(spec)
    command = [sys.executable, __file__, "--run-once", json.dumps(spec)]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode != 0:
        raise SystemExit(f"{spec['program']} failed with status {child.returncode}")
    return json.loads(child.stdout.splitlines()[-1])


def seconds_to_first_token(path: str, device: str, n_threads: int) -> float:
    """From starting `pykvq generate` to the first byte it prints."""
    command = [sys.executable, "-m", "pykvq", "generate", path, "--prompt", "Why is the sky blue?"]
    command += ["--max-tokens", "4", "--temp", "0", "--threads", str(n_threads), "--device", device]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        first = child.stdout.read(1)
        seconds = time.perf_counter() - begin
        errors = child.communicate()[1].decode()
    if not first or child.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with status {child.returncode}\n{errors}")
    return seconds


# ---- the comparison ----


def compare(args: argparse.Namespace, ours: str, theirs: str) -> dict[str, Any]:
    """Alternating runs with pykvq's KV type `ours` and llama.cpp's `theirs`."""
    most = max(max(args.depths) + args.decode + args.prefill, args.batch + WARM_UP_TOKENS)
    spec = {
        "n_ctx": -(-most // 256) * 256,  # llama.cpp rounds up to that
        "n_threads": args.threads,
        "n_batch": args.batch,
        "device": args.device,
        "n_prefill": args.prefill,
        "n_decode": args.decode,
        "depths": args.depths,
        "prefill_depths": args.prefill_depths,
        "repeat_from": args.repeat_from,
        "llama_bench": args.llama_bench and str(args.llama_bench),
    }
    kv = dict(zip(PROGRAMS, (ours, theirs), strict=True))
    runs: dict[str, list[dict[str, Any]]] = {program: [] for program in PROGRAMS}
    for i in range(args.repeats):
        for program in PROGRAMS if i % 2 == 0 else reversed(PROGRAMS):
            print(f"  run {i + 1}/{args.repeats}: {program} {kv[program]}", file=sys.stderr)
            runs[program].append(run_in_child({**spec, "path": str(args.model), "program": program, "kv": kv[program]}))
    spec["llama_bench"] = args.llama_bench and args.llama_bench.name  # what is kept names no folders
    return {"kv": kv, "spec": spec, "runs": runs}


def rates(comparison: dict[str, Any], program: str, name: str) -> list[float]:
    """Tokens per second of each run."""
    n_tokens = comparison["spec"]["n_decode" if name.startswith("decode") else "n_prefill"]
    return [n_tokens / run["seconds"][name] for run in comparison["runs"][program]]


def spread(values: list[float], digits: int = 1) -> str:
    """Median (least to greatest)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(comparison: dict[str, Any]) -> str:
    """Markdown: tokens per second, then memory."""
    ours, theirs = (comparison["runs"][program] for program in PROGRAMS)
    kv = comparison["kv"]
    lines = [
        f"| tokens/s | pykvq {kv['pykvq']} | llama.cpp {kv['llama.cpp']} | ratio |",
        "|---|---|---|---|",
    ]
    for name in sorted(ours[0]["seconds"], key=lambda name: (name.split("@")[0], int(name.split("@")[1]))):
        a, b = (rates(comparison, program, name) for program in PROGRAMS)
        ratio = statistics.median(a) / statistics.median(b)
        lines.append(f"| {name.replace('@', ' at depth ')} | {spread(a)} | {spread(b)} | {ratio:.2f} |")
    peak = [run["peak_bytes"] / 2**20 for run in ours]
    if comparison["spec"]["repeat_from"] is None and theirs[0]["peak_bytes"] is not None:
        b = [run["peak_bytes"] / 2**20 for run in theirs]  # else copies of the state would count as llama.cpp's
        ratio = statistics.median(peak) / statistics.median(b)
        lines.append(f"| peak MiB | {spread(peak)} | {spread(b)} | {ratio:.2f} |")
    plan = ours[0]["facts"]["plan_bytes"] / 2**20
    lines.append(f"\nplan of pykvq: {plan:.1f} MiB; peak / plan = {statistics.median(peak) / plan:.3f}")
    return "\n".join(lines)


def machine(device: str) -> dict[str, Any]:
    """What the figures hold for."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            cpu = line.split(":", 1)[1].strip()
            break
    n_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": n_bytes,
        "system": platform.system(),
        "arch": platform.machine(),
        "load": os.getloadavg()[0],  # runnable processes over the last minute, before measuring
        **({"gpu": ask_gpu("name"), "driver": ask_gpu("driver_version")} if device == "cuda" else {}),
    }


def commit() -> str:
    """Of this checkout, with a mark if it has changes."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def sha256(path: Path) -> str:
    """Of the whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def report(args: argparse.Namespace) -> dict[str, Any]:
    """Everything measured, and what it was measured with."""
    import pykvq

    theirs = {}
    if not args.llama_bench:
        import llama_cpp

        theirs = {"llama-cpp-python": llama_cpp.__version__}
    command = [Path(sys.argv[0]).name] + [Path(a).name if a.startswith("/") else a for a in sys.argv[1:]]
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(command),
        "machine": machine(args.device),
        "commit": commit(),
        "versions": {
            "pykvq": pykvq.__version__,
            **theirs,
            "python": platform.python_version(),
        },
        "model": {"name": args.model.name, "bytes": args.model.stat().st_size, "sha256": sha256(args.model)},
        "threads": args.threads,
        "comparisons": [compare(args, *pair) for pair in args.kv],
    }
    if not args.no_start:
        seconds_to_first_token(str(args.model), args.device, args.threads)  # once to warm the page cache
        result["first_token_seconds"] = [
            seconds_to_first_token(str(args.model), args.device, args.threads) for _ in range(5)
        ]
    return result


def kv_pair(text: str) -> tuple[str, str]:
    """ "ours=theirs", or one name for both."""
    ours, _, theirs = text.partition("=")
    return ours, theirs or ours


def counts(text: str) -> list[int]:
    """ "0,2048" as numbers."""
    return sorted({int(part) for part in text.split(",")})


def arguments() -> argparse.Namespace:
    """The checked command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    n_cores = len(os.sched_getaffinity(0))
    add = parser.add_argument
    add("model", type=Path, help="a GGUF file that both programs can run")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="of both programs; default cpu")
    add("--batch", type=int, help="most tokens in one step of both; default 512, with --device cuda 2048")
    add("--llama-bench", type=Path, metavar="PATH", help="llama.cpp's program, instead of the package llama_cpp")
    add("--threads", type=int, default=n_cores, help="default: the cores this process may use")
    add("--depths", type=counts, default=[0, 2048, 8192], help="of decode; default 0,2048,8192")
    add("--prefill-depths", type=counts, default=[0, 8192], help="default 0,8192; 0 or among --depths")
    add("--prefill", type=int, default=512, help="tokens of a prefill; default 512")
    add("--decode", type=int, default=64, help="tokens of a decode; default 64")
    add("--repeat-from", type=int, metavar="N", help="llama.cpp's cache beyond N tokens repeats those")
    add("--repeats", type=int, default=3, help="default 3")
    add("--kv", type=kv_pair, action="append", metavar="OURS=THEIRS", help="default f16=f16; repeatable")
    add("--no-start", action="store_true", help="do not measure the time to the first token")
    add("--json", type=Path, metavar="OUT", help="write everything measured to this file")
    args = parser.parse_args()
    args.kv = args.kv or [("f16", "f16")]
    args.batch = args.batch or (2048 if args.device == "cuda" else 512)
    if args.llama_bench and not os.access(args.llama_bench, os.X_OK):
        parser.error(f"{args.llama_bench}: no program that can be run")
    if args.llama_bench and args.repeat_from:
        parser.error("--repeat-from: llama-bench feeds all tokens")
    if not args.model.is_file():
        parser.error(f"{args.model}: no such file")
    if any(b - a < args.decode + args.prefill for a, b in zip(args.depths, args.depths[1:], strict=False)):
        parser.error("--depths: too close together for a decode and a prefill between them")
    if not set(args.prefill_depths) <= {0, *args.depths}:
        parser.error("--prefill-depths: each must be among --depths")
    return args


def main() -> None:
    """Measure, or be one of the measured processes."""
    if sys.argv[1:2] == ["--run-once"]:
        print(json.dumps(run_once(json.loads(sys.argv[2]))))
        return
    args = arguments()
    result = report(args)
    info = result["machine"]
    if info["load"] > 0.5 * info["cores"]:
        print(f"warning: the machine was busy (load {info['load']:.1f}); these figures are not worth keeping\n")
    place = info.get("gpu", info["cpu"])
    print(f"{result['model']['name']}, {args.threads} threads, {place}, {result['date']}, {result['commit']}\n")
    for comparison in result["comparisons"]:
        print(table(comparison) + "\n")
    if "first_token_seconds" in result:
        print(f"first token after {spread(result['first_token_seconds'], 3)} s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
