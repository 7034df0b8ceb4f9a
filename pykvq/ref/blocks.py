"""q8_0, q4_0: symmetric uniform codes of rotated tiles, one scale for 32 channels of a token, as GGUF's types of these
names.

x ~ scale * (code - bias), bias 128 or 8. q8_0's scale puts the largest element on 127. q4_0's first scale puts the
largest element on -8; of four scales around it the one with the least squared error stays; values then get the unbiased
scale. The last block of a head_dim like 80 is shorter. Tile: codes; scales, half floats [block][token].
"""

from functools import partial

import numpy as np

from pykvq.ref.pack import pack, unpack
from pykvq.ref.tile import F16, F32, F64, TILE, U8, Codec, Parts, half, reciprocal, rotate, rotate_back, total

_BLOCK = 32


def _round(x: F32, scale: F32, low: int, high: int) -> F32:
    scaled = x * reciprocal(scale)[:, None]
    return np.round(np.clip(scaled, np.float32(low), np.float32(high)))


def _encode_8(x: F32) -> tuple[U8, F16]:
    scale = half(np.abs(x).max(axis=1) / np.float32(127))
    return (_round(x, scale.astype(np.float32), -127, 127) + 128).astype(np.uint8), scale


def _encode_4(side: str, x: F32) -> tuple[U8, F16]:
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    least = np.full(len(x), np.inf, np.float32)
    best = np.zeros(len(x), np.float32)
    for stretch in (1, 0.9375, 0.875, 1.0625):
        scale = half(extreme / np.float32(-8) * np.float32(stretch)).astype(np.float32)
        difference = scale[:, None] * _round(x, scale, -8, 7) - x
        error = total(difference * difference, 1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    q = _round(x, best, -8, 7)
    if side == "v":
        xq = total(x * q, 1)
        best = np.where(xq == 0, best, total(x * x, 1) / np.where(xq == 0, np.float32(1), xq))
    return (q + 8).astype(np.uint8), half(best)


def _encode(side: str, bits: int, x: F32) -> bytes:
    y = rotate(x)
    blocks = [y[:, i : i + _BLOCK] for i in range(0, y.shape[1], _BLOCK)]
    fits = [_encode_8(block) if bits == 8 else _encode_4(side, block) for block in blocks]
    codes = np.concatenate([codes for codes, _ in fits], axis=1)
    return pack(side, bits, codes) + b"".join(scale.tobytes() for _, scale in fits)


def _decode(side: str, bits: int, tile: U8, head_dim: int) -> F64:
    parts = Parts(tile)
    codes = unpack(side, bits, head_dim, parts).astype(np.float64) - (128 if bits == 8 else 8)
    scale = np.repeat(parts.halfs(-(-head_dim // _BLOCK), TILE), _BLOCK, axis=0)[:head_dim]
    return rotate_back(scale.T * codes)


def codecs(bits: int) -> tuple[Codec, Codec]:
    """Give the K and the V codec."""
    k, v = (Codec(partial(_encode, s, bits), partial(_decode, s, bits)) for s in "kv")
    return k, v
