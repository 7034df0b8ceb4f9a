"""What each KV type costs a model, without pykvq's engine: KL divergence from exact attention, with torch.

    pip install . torch gguf
    python tools/kv_oracle.py MODEL.gguf TEXT_FILE
    python tools/kv_oracle.py MODEL.gguf TEXT_FILE --kv tier2 kvarn2 --kv-k q8_0 --sink 0 --tail 0 --json OUT.json

An independent check of codecs and of the engine: a plain float32 forward pass of a llama or qwen2 GGUF in torch, whose
attention sees the keys and values that pykvq's codecs give back. All tokens of a chunk run at once, but each query sees
what it would see one token at a time: itself, the sink and the tail as half floats, encoded tiles before that. The key
bias of qwen2 is taken out before encoding and put back after, exactly; --least-key-bias leaves smaller ones in.

Chunks are the text from its start, --ctx tokens each; the second half of each is scored. Printed per type: mean,
median, 99% and 99.9% KL divergence (nats per token), how often the most likely token is the same, perplexity over that
of exact attention, bits per element of encoded tiles. On a thousand tokens a few rare ones make most of the mean:
compare types on several chunks.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import torch.nn.functional as F

import pykvq
from pykvq._ffi import check, ffi, lib

TILE = 64


class Codec:
    """The keys' or values' side of a KV type: encodes and decodes tiles."""

    def __init__(self, kv_type: str, side: str, head_dim: int):
        self.args = kv_type.encode(), side.encode(), head_dim
        n_bytes = ffi.new("uint64_t *")
        check(lib.pykvq_kv_tile_bytes(*self.args, n_bytes))
        self.bits = n_bytes[0] * 8 / (TILE * head_dim)
        self.tile = ffi.new("uint8_t[]", n_bytes[0])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (n_tokens, n_heads, head_dim) as it comes back; tokens after the last whole tile as they are."""
        back = x.clone()
        for start in range(0, len(x) - TILE + 1, TILE):
            for head in range(x.shape[1]):
                tile = x[start : start + TILE, head].contiguous()
                check(lib.pykvq_kv_encode(*self.args, ffi.cast("float *", tile.data_ptr()), self.tile))
                check(lib.pykvq_kv_decode(*self.args, self.tile, ffi.cast("float *", tile.data_ptr())))
                back[start : start + TILE, head] = tile
        return back


def by_head(x: torch.Tensor) -> torch.Tensor:
    """(n_tokens, n_heads, head_dim) as (n_heads, 1, n_tokens, head_dim)."""
    return x.permute(1, 0, 2)[:, None]


class Model:
    """A llama or qwen2 of a GGUF file, in float32."""

    def __init__(self, path: Path):
        reader = gguf.GGUFReader(path)
        field = {name: value.contents() for name, value in reader.fields.items() if "tokenizer" not in name}
        self.arch = arch = field["general.architecture"]
        if arch not in ("llama", "qwen2"):
            sys.exit(f"kv_oracle: architecture {arch}: expected llama or qwen2")
        self.name = field.get("general.name", path.stem)
        self.n_layer, self.n_head = field[f"{arch}.block_count"], field[f"{arch}.attention.head_count"]
        self.n_head_kv = field[f"{arch}.attention.head_count_kv"]
        self.head_dim = field[f"{arch}.embedding_length"] // self.n_head
        self.eps, self.rope_base = field[f"{arch}.attention.layer_norm_rms_epsilon"], field[f"{arch}.rope.freq_base"]
        self.weights = {
            t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32))
            for t in reader.tensors
        }

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """x over its root mean square, times a weight."""
        return F.rms_norm(x, x.shape[-1:], self.weights[name + ".weight"], self.eps)

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """x times a weight matrix, plus its bias if there is one."""
        return F.linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def rope(self, x: torch.Tensor) -> torch.Tensor:
        """x (n_tokens, n_heads, head_dim) turned by positions 0, 1 and so on; llama pairs neighbours, qwen2 halves."""
        inverse = self.rope_base ** (-torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
        angle = torch.arange(len(x), dtype=torch.float64)[:, None, None] * inverse
        cos, sin = angle.cos().float(), angle.sin().float()
        if self.arch == "llama":
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def key_bias(self, layer: int, n_tokens: int, least: float) -> torch.Tensor:
        """What the bias of the key projection adds to the key of each position, by pairs of at least this size."""
        bias = self.weights.get(f"blk.{layer}.attn_k.bias", torch.zeros(self.n_head_kv * self.head_dim))
        bias = bias.view(1, self.n_head_kv, self.head_dim)
        split = (-1, 2) if self.arch == "llama" else (2, -1)  # how RoPE pairs channels
        pairs = bias.unflatten(-1, split)
        size = pairs.norm(dim=2 + split.index(2), keepdim=True)
        return self.rope((pairs * (size >= least)).flatten(-2).expand(n_tokens, -1, -1))

    def attend(self, layer: int, x: torch.Tensor, cache: "Cache | None") -> torch.Tensor:
        """What attention adds to the residual stream; without a cache, with exact keys and values."""
        n, prefix = len(x), f"blk.{layer}.attn_"
        q = self.rope(self.linear(x, prefix + "q").view(n, self.n_head, self.head_dim))
        k = self.rope(self.linear(x, prefix + "k").view(n, self.n_head_kv, self.head_dim)).half().float()
        v = self.linear(x, prefix + "v").view(n, self.n_head_kv, self.head_dim).half().float()
        q = q.view(n, self.n_head_kv, -1, self.head_dim).permute(1, 2, 0, 3)  # (n_head_kv, group, n, head_dim)
        logits = q @ by_head(k).mT
        if cache:
            bias = self.key_bias(layer, n, cache.least_key_bias)
            logits = torch.where(cache.coded(n), q @ by_head(cache.k(k - bias) + bias).mT, logits)
        past = torch.ones(n, n, dtype=torch.bool).tril()
        p = (logits * self.head_dim**-0.5).masked_fill(~past, -torch.inf).softmax(-1)
        o = p @ by_head(v)
        if cache:
            o = (p * cache.coded(n)) @ by_head(cache.v(v)) + (p * ~cache.coded(n)) @ by_head(v)
        return self.linear(o.permute(2, 0, 1, 3).reshape(n, -1), prefix + "output")

    @torch.no_grad()
    def log_probabilities(self, tokens: torch.Tensor, first: int, cache: "Cache | None") -> torch.Tensor:
        """(n_tokens - first, n_vocab) for the positions from `first` on; without a cache, of exact attention."""
        x = self.weights["token_embd.weight"][tokens]
        for layer in range(self.n_layer):
            prefix = f"blk.{layer}.ffn_"
            x = x + self.attend(layer, self.norm(x, f"blk.{layer}.attn_norm"), cache)
            h = self.norm(x, prefix + "norm")
            x = x + self.linear(
                F.silu(self.linear(h, prefix + "gate")) * self.linear(h, prefix + "up"), prefix + "down"
            )
        table = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return F.linear(self.norm(x[first:], "output_norm"), table).log_softmax(-1)


class Cache:
    """How keys and values are stored: types, sink and tail."""

    def __init__(self, type_k: str, type_v: str, head_dim: int, options: argparse.Namespace):
        self.k, self.v = Codec(type_k, "k", head_dim), Codec(type_v, "v", head_dim)
        self.sink, self.tail, self.least_key_bias = options.sink, options.tail, options.least_key_bias

    def coded(self, n: int) -> torch.Tensor:
        """(n, n): does query i see key j from an encoded tile, when tokens come one at a time?"""
        i, tile = torch.arange(n)[:, None], torch.arange(n)[None] // TILE
        return ((tile + 1) * TILE <= i - self.tail) & (tile * TILE >= self.sink)


def compare(reference: list[torch.Tensor], other: list[torch.Tensor], chunks: list[torch.Tensor]) -> dict[str, float]:
    """KL divergence of each scored position, and what else is printed."""
    ref, got = torch.cat(reference), torch.cat(other)
    kl = (ref.exp() * (ref - got)).sum(-1)
    next_tokens = [chunk[-len(r) + 1 :] for chunk, r in zip(chunks, reference, strict=True)]
    nll = [
        -torch.cat([x[:-1].gather(1, t[:, None]) for x, t in zip(lps, next_tokens, strict=True)]).mean()
        for lps in (reference, other)
    ]
    return {
        "mean_kl": kl.mean().item(),
        "median_kl": kl.median().item(),
        "kl_99": kl.quantile(0.99).item(),
        "kl_99.9": kl.quantile(0.999).item(),
        "same_top": (ref.argmax(-1) == got.argmax(-1)).float().mean().item(),
        "perplexity_ratio": (nll[1] - nll[0]).exp().item(),
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument(
        "--kv", nargs="+", default=[t.name for t in pykvq.kv_types() if t.name != "f16"], metavar="TYPE"
    )
    parser.add_argument("--kv-k", metavar="TYPE", help="K type of every run, if it differs")
    parser.add_argument("--kv-v", metavar="TYPE", help="V type of every run, if it differs")
    parser.add_argument("--sink", type=int, default=64, metavar="N")
    parser.add_argument("--tail", type=int, default=64, metavar="N")
    parser.add_argument("--ctx", type=int, default=2048, metavar="N")
    parser.add_argument("--chunks", type=int, default=1, metavar="N")
    parser.add_argument("--least-key-bias", type=float, default=0.0, metavar="SIZE", help="inf: all stays in the keys")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    """Measure the types one after the other."""
    options = parse()
    model, n_scored = Model(options.model), options.ctx // 2
    ids = pykvq.Tokenizer.from_gguf(options.model).encode(options.text.read_text("utf-8"), add_bos=False)
    chunks = list(torch.tensor(ids[: options.ctx * options.chunks]).split(options.ctx))
    if len(ids) < options.ctx * options.chunks:
        sys.exit(f"kv_oracle: {options.text} has {len(ids)} tokens, expected {options.ctx * options.chunks}")
    exact = [model.log_probabilities(chunk, n_scored, None) for chunk in chunks]
    print(f"{model.name}, {options.chunks} x {options.ctx} tokens, sink {options.sink}, tail {options.tail}")
    columns = ("type", 12), ("K bits", 7), ("V bits", 7), ("mean KL", 9), ("median", 9), ("99%", 8), ("99.9%", 8)
    print(*(f"{name:>{width}}" for name, width in (*columns, ("same top", 9), ("PPL ratio", 10))))
    results: list[dict[str, Any]] = []
    for kv_type in options.kv:
        start = time.perf_counter()
        cache = Cache(options.kv_k or kv_type, options.kv_v or kv_type, model.head_dim, options)
        r = compare(exact, [model.log_probabilities(chunk, n_scored, cache) for chunk in chunks], chunks)
        print(
            f"{kv_type:>12} {cache.k.bits:7.3f} {cache.v.bits:7.3f} {r['mean_kl']:9.5f} {r['median_kl']:9.5f} "
            f"{r['kl_99']:8.4f} {r['kl_99.9']:8.4f} {r['same_top']:9.2%} {r['perplexity_ratio']:10.4f}",
            f"  {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        results.append({"type": kv_type, "k_bits": cache.k.bits, "v_bits": cache.v.bits, **r})
    if options.json:
        setting = {name: getattr(options, name) for name in ("kv_k", "kv_v", "sink", "tail", "ctx", "chunks")}
        setting |= {"model": model.name, "text": options.text.name, "least_key_bias": options.least_key_bias}
        options.json.write_text(json.dumps({**setting, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
