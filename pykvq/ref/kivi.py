"""kivi4, kivi2, kivi2_g64 (KIVI, arXiv 2402.02750): asymmetric uniform codes, keys per channel, values per token.

A group is 32 (g64: 64) consecutive tokens of one channel (K), or as many consecutive channels of one token (V; the last
group of a head_dim like 80 is shorter). Tile: codes, scales, zeros; scales and zeros are half floats [group][channel]
for K and [group][token] for V.
"""

from functools import partial

import numpy as np

from pykvq.ref import affine
from pykvq.ref.pack import pack, unpack
from pykvq.ref.tile import F32, F64, TILE, U8, Codec, Parts


def _encode(side: str, bits: int, group: int, x: F32) -> bytes:
    rows, rule = (x, "norm") if side == "k" else (x.T, "unbiased")  # a group is some rows of one column
    fits = [affine.encode(rows[i : i + group], bits, rule) for i in range(0, len(rows), group)]
    codes = np.concatenate([codes for codes, _, _ in fits])
    scales, zeros = np.stack([scale for _, scale, _ in fits]), np.stack([zero for _, _, zero in fits])
    return pack(side, bits, codes if side == "k" else codes.T) + scales.tobytes() + zeros.tobytes()


def _decode(side: str, bits: int, group: int, tile: U8, head_dim: int) -> F64:
    parts = Parts(tile)
    codes = unpack(side, bits, head_dim, parts)
    rows = codes if side == "k" else codes.T
    shape = (-(-len(rows) // group), rows.shape[1])
    scale, zero = (np.repeat(parts.halfs(*shape), group, axis=0)[: len(rows)] for _ in range(2))
    x = affine.decode(rows, scale, zero)
    assert x.shape in ((TILE, head_dim), (head_dim, TILE))
    return x if side == "k" else x.T


def codecs(bits: int, group: int) -> tuple[Codec, Codec]:
    """Give the K and the V codec."""
    k, v = (Codec(partial(_encode, side, bits, group), partial(_decode, side, bits, group)) for side in "kv")
    return k, v
