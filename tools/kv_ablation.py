"""What the choices inside the codecs are worth: each codec beside itself with one choice made otherwise.

    pip install . torch gguf
    python tools/kv_ablation.py MODEL.gguf TEXT_FILE --save tools/bench/ablation_MODEL.jsonl
    python tools/kv_ablation.py MODEL.gguf TEXT_FILE --question key_bias --kv turbo4 kivi2

What `pykvq eval` can set (types by side and layer, sink, tail) is measured with it. These are the choices that are
fixed in the codecs, answered in the model of kv_oracle.py, where each query sees what it would see one token at a time:

    rotation   rotated types without it, kivi and the keys of tier with it; by side
    signs      other random signs of the rotation: how much of a difference is chance
    metadata   groups of 32 and 64 tokens or channels; scales and zeros of 16 and of 8 bits
    scale      the rule for the last scale: least squares, norm (that of the codes is the original's), unbiased
    key_bias   from which size on the bias of a RoPE pair is taken out of the keys

Rows go to a result file, as those of `pykvq eval`; what the file has is not measured again.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from kv_oracle import TILE, Cache, Codec, Model

import pykvq
from pykvq.evaluation import Windows
from pykvq.evaluation.metrics import Divergence
from pykvq.ref import affine, kvarn
from pykvq.ref.tile import F32, hadamard, half, rotate, rotate_back, rotate_signs, total
from pykvq.ref.turbo import CENTROIDS
from pykvq.results import ResultFile, origin

Change: TypeAlias = Callable[[torch.Tensor], torch.Tensor]  # (n_tokens, n_heads, head_dim) and back
Variant: TypeAlias = tuple[str, str, Cache]  # KV type, what differs, how it stores

ROTATED = ["q8_0", "q4_0", "fp8", "nvfp4", "turbo4", "turbo3", "turbo2", "kvarn4", "kvarn3", "kvarn2"]
RULES = ["least squares", "norm", "unbiased"]


# ---- rotation: a compiled codec between a change of basis and its inverse ----


class Between:
    """A codec that sees its tiles in another basis."""

    def __init__(self, codec: Codec, change: Change, back: Change):
        self.codec, self.change, self.back, self.bits = codec, change, back, codec.bits

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (n_tokens, n_heads, head_dim) as it comes back."""
        whole = len(x) // TILE * TILE
        return torch.cat([self.back(self.codec(self.change(x[:whole]).contiguous())), x[whole:]])


def bases(head_dim: int) -> tuple[Change, Change]:
    """The rotation and its inverse."""
    order = head_dim & -head_dim
    block = torch.from_numpy(hadamard(order).astype(np.float32))
    signs = torch.from_numpy(rotate_signs(head_dim))

    def by_block(x: torch.Tensor) -> torch.Tensor:
        return (x.unflatten(-1, (-1, order)) @ block).flatten(-2)

    return lambda x: by_block(x * signs), lambda x: by_block(x) * signs


def rotation(types: list[str], head_dim: int, options: argparse.Namespace) -> Iterator[Variant]:
    """The other basis, for keys, values and both."""
    there, back = bases(head_dim)

    def other(kv: str, side: str) -> Between:
        rotated = kv in ROTATED or (kv.startswith("tier") and side == "v")  # then what undoes its rotation comes first
        return Between(Codec(kv, side, head_dim), *((back, there) if rotated else (there, back)))

    for kv in types:
        cache = Cache(kv, kv, head_dim, options)
        k, v, other_k, other_v = cache.k, cache.v, other(kv, "k"), other(kv, "v")
        for name, cache.k, cache.v in [
            ("as it is", k, v), ("keys otherwise", other_k, v), ("values otherwise", k, other_v),
            ("both otherwise", other_k, other_v),
        ]:  # fmt: skip
            yield kv, name, cache


def signs(types: list[str], head_dim: int, options: argparse.Namespace) -> Iterator[Variant]:
    """Six other draws of the rotation's signs."""
    for kv in types:
        cache = Cache(kv, kv, head_dim, options)
        k, v = cache.k, cache.v
        yield kv, "as it is", cache
        for seed in range(1, 7):
            flips = torch.from_numpy(np.random.default_rng(seed).choice([-1, 1], head_dim).astype(np.float32))
            cache.k, cache.v = Between(k, flips.mul, flips.mul), Between(v, flips.mul, flips.mul)
            yield kv, f"draw {seed}", cache


# ---- metadata and scales: the codecs again, one tile (64, head_dim) at a time, with every choice an argument ----


class ByTile:
    """A codec made of a function from a tile to what comes back of it."""

    def __init__(self, bits: float, through: Callable[[F32], Any]):
        self.bits, self.through = bits, through

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (n_tokens, n_heads, head_dim) as it comes back."""
        back = x.numpy().copy()
        for start in range(0, len(x) - TILE + 1, TILE):
            for head in range(x.shape[1]):
                back[start : start + TILE, head] = self.through(back[start : start + TILE, head])
        return torch.from_numpy(back)


METADATA = {"16 bits": 16, "16 bits, codes again": 16, "8 bits": 8, "8 bits, log scales": 8}  # bits of one number


def to_8_bits(x: Any) -> Any:
    """Values as one byte each between their least and greatest, which a tile stores as half floats."""
    low, high = x.min(), x.max()
    low, step = float(half(low)), float(half((high - low) / 255))
    return low + step * np.round((x - low) / step) if step else np.full_like(x, low)


def uniform(columns: F32, bits: int, rule: str, group: int, metadata: str) -> Any:
    """Columns through uniform codes with a scale and a zero for `group` rows; but for plain 16 bits rounded again."""
    groups = [columns[i : i + group] for i in range(0, len(columns), group)]
    fits = [affine.encode(rows, bits, rule) for rows in groups]
    scales, zeros = (np.stack([fit[i] for fit in fits]).astype(np.float64) for i in (1, 2))
    if metadata == "16 bits":
        return np.concatenate([affine.decode(fit[0], s, z) for fit, s, z in zip(fits, scales, zeros, strict=True)])
    if metadata == "8 bits":
        scales, zeros = to_8_bits(scales), to_8_bits(zeros)
    elif metadata == "8 bits, log scales":
        scales, zeros = np.exp(to_8_bits(np.log(np.maximum(scales, 1e-6)))), to_8_bits(zeros)
    again = [
        np.clip(np.round((rows - zero) / np.maximum(scale, 1e-6)), 0, 2**bits - 1) * scale + zero
        for rows, scale, zero in zip(groups, scales, zeros, strict=True)
    ]
    return np.concatenate(again)


def metadata_bits(metadata: str, group: int, n_elements: int) -> float:
    """Bits per element of scales and zeros; the two bounds of both if they are bytes."""
    width = METADATA[metadata]
    return 2 * width / group + (64 / n_elements if width == 8 else 0)


def kivi(side: str, bits: int, rule: str, group: int, metadata: str, head_dim: int) -> ByTile:
    """A side of a kivi type."""

    def through(x: F32) -> Any:
        back = uniform(x if side == "k" else x.T, bits, rule, group, metadata)
        return back if side == "k" else back.T

    group = min(group, TILE if side == "k" else head_dim)
    return ByTile(bits + metadata_bits(metadata, group, TILE * head_dim), through)


def normalized(side: str, bits: int, rule: str, metadata: str, head_dim: int) -> ByTile:
    """A side of a kvarn type."""

    def keys(x: F32) -> Any:
        y = rotate(x)
        factor, _ = kvarn.normal_factors(y)
        back = uniform(kvarn.divide_tokens(y, factor), bits, rule, TILE, metadata)
        factor = kvarn.refit_tokens(y, back.astype(np.float32), factor).astype(np.float64)
        return rotate_back(factor[:, None] * back)

    def values(x: F32) -> Any:
        y = rotate(x)
        _, factor = kvarn.normal_factors(y)
        back = uniform(kvarn.divide_tokens(np.ascontiguousarray(y.T), factor), bits, rule, head_dim, metadata)
        return rotate_back((factor.astype(np.float64)[:, None] * back).T)

    group, factors = (TILE, 16 / head_dim) if side == "k" else (head_dim, 16 / TILE)
    extra = factors + metadata_bits(metadata, group, TILE * head_dim)
    return ByTile(bits + extra, keys if side == "k" else values)


def tier_keys(kv: str, metadata: str, head_dim: int) -> ByTile:
    """The keys of a tier type."""
    tiers = {"tier2": ((4, 1), (2, 1), (1, 2)), "tier3": ((4, 1), (3, 2), (2, 1))}[
        kv
    ]  # (bits, quarters of the channels)

    def through(x: F32) -> Any:
        factor, _ = kvarn.normal_factors(x)
        normal = kvarn.divide_tokens(x, factor)
        order, back, first = np.argsort(-normal.var(0), kind="stable"), np.empty_like(x), 0
        for bits, quarters in tiers:
            places = order[first : first + quarters * head_dim // 4]
            back[:, places] = uniform(normal[:, places], bits, "norm", TILE, metadata)
            first += len(places)
        factor = kvarn.refit_tokens(x, back, factor).astype(np.float32)
        return factor[:, None] * back

    plain = Codec(kv, "k", head_dim).bits
    saved = metadata_bits("16 bits", TILE, 0) - metadata_bits(metadata, TILE, TILE * head_dim // len(tiers))
    return ByTile(plain - saved, through)


def turbo(bits: int, rule: str, head_dim: int) -> ByTile:
    """A side of a turbo type; the rule "raw norm" is that of the paper."""
    centroids = CENTROIDS[bits]
    midpoints = (centroids[:-1] + centroids[1:]) / 2

    def through(x: F32) -> Any:
        y = rotate(x)
        size = np.sqrt(total(y * y, 1) / np.float32(head_dim))[:, None] + np.float32(1e-20)
        stretches = [1] if rule == "raw norm" else [1, 0.90625, 1.09375]
        drawn = np.stack([centroids[np.searchsorted(midpoints, y / (size * stretch))] for stretch in stretches])
        yc, cc, yy = (y * drawn).sum(-1), (drawn * drawn).sum(-1), (y * y).sum(-1)
        best, rows = (yc * yc / cc).argmax(0), np.arange(len(y))
        c, yc, cc = drawn[best, rows], yc[best, rows], np.maximum(cc[best, rows], 1e-20)
        scale = {
            "raw norm": size[:, 0], "least squares": yc / cc, "norm": np.sqrt(yy / cc),
            "unbiased": yy / np.maximum(yc, 1e-20),
        }[rule]  # fmt: skip
        return rotate_back(half(scale).astype(np.float64)[:, None] * c)

    return ByTile(bits + 16 / head_dim, through)


def metadata(types: list[str], head_dim: int, options: argparse.Namespace) -> Iterator[Variant]:
    """Group sizes and bits of scales and zeros."""
    for kv in types:
        cache, bits = Cache(kv, kv, head_dim, options), int(kv[-1])
        for group in (32, 64) if kv.startswith("kivi") else (64,):
            for name in METADATA:
                if kv.startswith("kivi"):
                    cache.k = kivi("k", bits, "norm", group, name, head_dim)
                    cache.v = kivi("v", bits, "unbiased", group, name, head_dim)
                else:
                    cache.k, cache.v = (normalized(side, bits, "unbiased", name, head_dim) for side in "kv")
                if kv.startswith("tier"):
                    cache.k = tier_keys(kv, name, head_dim)
                yield kv, f"groups of {group}, {name}", cache


def scale(types: list[str], head_dim: int, options: argparse.Namespace) -> Iterator[Variant]:
    """Rules for the last scale; of the keys and of the values."""
    for kv in types:
        family, bits = kv[:-1], int(kv[-1])
        for rule_k, rule_v in [*((rule, rule) for rule in RULES), ("least squares", "unbiased"), ("norm", "unbiased")]:
            cache = Cache(kv, kv, head_dim, options)
            if family == "turbo":
                cache.k, cache.v = turbo(bits, rule_k, head_dim), turbo(bits, rule_v, head_dim)
            elif family == "kivi":
                cache.k, cache.v = (
                    kivi(s, bits, r, 32, "16 bits", head_dim) for s, r in (("k", rule_k), ("v", rule_v))
                )
            else:
                cache.k, cache.v = (
                    normalized(s, bits, r, "16 bits", head_dim) for s, r in (("k", rule_k), ("v", rule_v))
                )
            yield kv, f"keys {rule_k}, values {rule_v}", cache
        if family == "turbo":
            cache = Cache(kv, kv, head_dim, options)
            cache.k = cache.v = turbo(bits, "raw norm", head_dim)
            yield kv, "keys raw norm, values raw norm", cache


# ---- key bias ----


def key_bias(types: list[str], head_dim: int, options: argparse.Namespace) -> Iterator[Variant]:
    """From which size on a pair's bias is taken out: all pairs, 1, 2, 4, none."""
    for kv in types:
        for least in (0.0, 1.0, 2.0, 4.0, float("inf")):
            cache = Cache(kv, kv, head_dim, options)
            cache.least_key_bias = least
            yield kv, f"from {least:g} on", cache


QUESTIONS: dict[str, tuple[Callable[..., Iterator[Variant]], list[str]]] = {
    "signs": (signs, ["turbo4", "turbo3"]),
    "rotation": (rotation, [*ROTATED, "kivi4", "kivi2", "tier2"]),
    "metadata": (metadata, ["kivi2", "kivi4", "kvarn2", "kvarn4", "tier2"]),
    "scale": (scale, ["turbo4", "turbo2", "kivi2", "kvarn4", "kvarn2"]),
    "key_bias": (key_bias, ["turbo4", "kivi2", "tier2"]),
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument(
        "--question", nargs="+", choices=list(QUESTIONS), default=["signs", "rotation", "metadata", "scale"]
    )
    parser.add_argument("--kv", nargs="+", metavar="TYPE", help="default: those that the question is about")
    parser.add_argument("--sink", type=int, default=64, metavar="N")
    parser.add_argument("--tail", type=int, default=64, metavar="N")
    parser.add_argument("--ctx", type=int, default=2048, metavar="N")
    parser.add_argument("--chunks", type=int, default=1, metavar="N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--save", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    """Measure variant after variant."""
    options = parse()
    torch.set_num_threads(options.threads)
    options.least_key_bias = 0.0
    model, n_scored = Model(options.model), options.ctx // 2
    with pykvq.Model.open(options.model) as opened:
        text = options.text.read_text("utf-8")
        windows = Windows(opened, text, ctx=options.ctx, count=options.chunks, n_scored=n_scored)
    chunks = [torch.tensor(tokens) for tokens in windows.tokens]
    exact: list[Any] = []
    file, source = ResultFile(options.save), origin(str(options.model))
    setting = {name: getattr(options, name) for name in ("sink", "tail", "ctx", "chunks")} | {"text": options.text.name}
    first = options.ctx - n_scored

    def measure(cache: Cache) -> dict[str, float]:
        if not exact:
            exact.extend(model.log_probabilities(chunk, first, None).numpy() for chunk in chunks)
        divergence = Divergence()
        for chunk, reference, targets in zip(chunks, exact, windows.targets, strict=True):
            divergence.add(reference, model.log_probabilities(chunk, first, cache).numpy(), targets)
        return {"bits_k": cache.k.bits, "bits_v": cache.v.bits, **divergence.summary()}

    for question in options.question:
        variants, types = QUESTIONS[question]
        for kv, variant, cache in variants(options.kv or types, model.head_dim, options):
            key = {"task": "ablation", "question": question, "kv": kv, "variant": variant, "setting": setting}
            row = file.find({**key, "model": source["model"]})
            if row is None:
                row = {**key, **measure(cache), **source}
                file.append(row)
            bits = f"{row['bits_k']:6.3f} {row['bits_v']:6.3f}"
            loss = f"{row['mean_kl']:9.5f} ± {row['mean_kl_error']:.5f} {row['median_kl']:9.5f}"
            print(f"{question:>9} {kv:>7} {variant:<42} {bits} {loss}", flush=True)


if __name__ == "__main__":
    main()
