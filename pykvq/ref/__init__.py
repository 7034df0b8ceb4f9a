"""The KV codecs again, in numpy: the slow oracle of the compiled ones, and the documentation of their formats.

`encode(kv_type, side, x)` turns one tile, 64 tokens of one KV head, into the bytes that the library stores;
`decode(kv_type, side, tile, head_dim)` turns bytes back into numbers. Nothing here calls the library, and the two agree
byte for byte: encoding is written as float32 steps in a fixed order (sums run in index order, roundings to nearest with
ties to even, no fused multiply-add), which IEEE arithmetic repeats on every machine. Decoding is written in float64, as
what the bytes mean exactly; the library decodes in float32, so its last bits may differ.
"""

import numpy as np

from pykvq.ref import blocks, f16, fp8, kivi, kvarn, nvfp4, tier, turbo
from pykvq.ref.tile import F32, F64, TILE, Codec, load

# name of the KV type: (K codec, V codec)
CODECS: dict[str, tuple[Codec, Codec]] = {
    "f16": f16.CODECS,
    "q8_0": blocks.codecs(8),
    "q4_0": blocks.codecs(4),
    "fp8": fp8.CODECS,
    "nvfp4": nvfp4.CODECS,
    "kivi4": kivi.codecs(4, 32),
    "kivi2": kivi.codecs(2, 32),
    "kivi2_g64": kivi.codecs(2, 64),
    "turbo4": turbo.codecs(4),
    "turbo3": turbo.codecs(3),
    "turbo2": turbo.codecs(2),
    "turbo3.5": turbo.split_codecs(3),
    "turbo2.5": turbo.split_codecs(2),
    "kvarn4": kvarn.codecs(4),
    "kvarn3": kvarn.codecs(3),
    "kvarn2": kvarn.codecs(2),
    "tier3": (tier.codec(3), kvarn.codecs(3)[1]),
    "tier2": (tier.codec(2), kvarn.codecs(2)[1]),
}


def encode(kv_type: str, side: str, x: F32) -> bytes:
    """Encode x (64, head_dim) as keys (side 'k') or values ('v') of this KV type."""
    if x.shape[0] != TILE or x.shape[1] % 16:
        raise ValueError(f"a tile of shape {x.shape}: expected (64, a multiple of 16)")
    return CODECS[kv_type]["kv".index(side)].encode(load(x))


def decode(kv_type: str, side: str, tile: bytes, head_dim: int) -> F64:
    """Give back what a tile stores, (64, head_dim) in the original basis."""
    return CODECS[kv_type]["kv".index(side)].decode(np.frombuffer(tile, np.uint8), head_dim)
