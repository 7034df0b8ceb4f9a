"""What llama.cpp's quantized caches cost in quality, measured as `pykvq eval` measures pykvq's.

    pip install . llama-cpp-python
    python tools/llamacpp_quality.py MODEL.gguf TEXT_FILE --save tools/bench/llamacpp_quality.jsonl

KL divergence of llama.cpp's logits with a quantized cache from its own with an f16 cache, on the windows of text and
the tokens that `pykvq eval` scores. The weights are given to llama.cpp as float32, as `pykvq eval` uses floats: with
quantized weights llama.cpp rounds activations to int8, which turns the smallest difference into a KL divergence of
about 0.003 on a small model. Its caches are as they come: rotated, without sink and tail.
"""

import argparse
import ctypes
import hashlib
import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import pykvq
from pykvq.evaluation import Windows
from pykvq.evaluation.metrics import Divergence
from pykvq.quantize import quantize
from pykvq.results import ResultFile, origin

BITS = {"f16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5}


class LlamaCpp:
    """A model in llama.cpp; its logits for windows of tokens."""

    def __init__(self, path: Path):
        import llama_cpp

        self.api = llama_cpp
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp: cannot open {path}")
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def context(self, kv: str, n_ctx: int, batch: int, n_threads: int) -> Any:
        """A context with this type for keys and values, flash attention on."""
        params = self.api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, batch, batch
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = self.api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = getattr(self.api, f"GGML_TYPE_{kv.upper()}")
        context = self.api.llama_init_from_model(self.model, params)
        if not context:
            raise SystemExit(f"llama.cpp: cannot make a context with KV type {kv}")
        return context

    def logits(self, context: Any, tokens: list[int], batch: int, n_scored: int) -> np.ndarray:
        """(n_scored, n_vocab) of the last tokens of a window, from an empty cache."""
        self.api.llama_memory_clear(self.api.llama_get_memory(context), True)
        rows: list[np.ndarray] = []
        for begin in range(0, len(tokens), batch):
            piece = tokens[begin : begin + batch]
            n_later = len(tokens) - begin - len(piece)
            n_wanted = min(len(piece), max(0, n_scored - n_later))
            given = self.api.llama_batch_init(len(piece), 0, 1)
            given.n_tokens = len(piece)
            for i, token in enumerate(piece):
                given.token[i], given.pos[i], given.n_seq_id[i] = token, begin + i, 1
                given.seq_id[i][0], given.logits[i] = 0, i >= len(piece) - n_wanted
            if self.api.llama_decode(context, given) != 0:
                raise SystemExit("llama.cpp: llama_decode failed")
            self.api.llama_batch_free(given)
            if n_wanted:
                raw = np.ctypeslib.as_array(self.api.llama_get_logits(context), (n_wanted, self.n_vocab))
                rows.append(raw.copy())
        return np.concatenate(rows)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--kv", nargs="+", default=["q8_0", "q4_0"], choices=list(BITS), metavar="TYPE")
    parser.add_argument("--ctx", type=int, default=2048, metavar="N")
    parser.add_argument("--chunks", type=int, default=4, metavar="N")
    parser.add_argument("--batch", type=int, default=64, metavar="N")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--save", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    """Measure the types together, window by window."""
    options = parse()
    text, n_scored = options.text.read_text("utf-8"), options.ctx - options.ctx // 2
    with pykvq.Model.open(options.model) as opened:
        windows = Windows(opened, text, ctx=options.ctx, count=options.chunks, n_scored=n_scored)
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder) / "floats.gguf"
        for _ in quantize(options.model, floats, "F32", requantize=True, threads=options.threads):
            pass
        llama = LlamaCpp(floats)
        results = {kv: Divergence() for kv in options.kv}
        contexts = {kv: llama.context(kv, options.ctx, options.batch, options.threads) for kv in ["f16", *options.kv]}
        for tokens, targets in zip(windows.tokens, windows.targets, strict=True):
            exact = llama.logits(contexts["f16"], tokens, options.batch, n_scored)
            for kv, divergence in results.items():
                divergence.add(exact, llama.logits(contexts[kv], tokens, options.batch, n_scored), targets)
    setting = {
        "device": "cpu", "exact": True, "batch": options.batch, "text": options.text.name,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(), "ctx": options.ctx, "chunks": options.chunks,
        "n_scored": n_scored,
    }  # fmt: skip
    file, source = ResultFile(options.save), origin(str(options.model))
    source["versions"] |= {"llama-cpp-python": importlib.metadata.version("llama-cpp-python")}
    for kv, divergence in results.items():
        figures = divergence.summary() | {"bits_per_element": BITS[kv]}
        file.append({"task": "divergence", "kv": f"llama.cpp {kv}", "setting": setting, **figures, **source})
        print(f"{kv:>5} mean KL {figures['mean_kl']:.5f} ± {figures['mean_kl_error']:.5f}, "
              f"median {figures['median_kl']:.5f}, same top {figures['same_top']:.2%}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
