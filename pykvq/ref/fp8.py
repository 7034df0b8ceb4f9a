"""fp8: e4m3 floats of a rotated tile, scaled by the smallest power of two that keeps its largest element within 448.

Tile: codes, one byte each; the scale, one float32.
"""

from functools import partial

import numpy as np

from pykvq.ref.pack import pack, unpack
from pykvq.ref.small_floats import E4M3, to_e4m3
from pykvq.ref.tile import F32, F64, U8, Codec, Parts, rotate, rotate_back


def _encode(side: str, x: F32) -> bytes:
    y = rotate(x)
    largest, exponent = float(np.abs(y).max()), -100
    while largest > 448 * 2.0**exponent:
        exponent += 1
    return pack(side, 8, to_e4m3(y * np.float32(2.0**-exponent))) + np.float32(2.0**exponent).tobytes()


def _decode(side: str, tile: U8, head_dim: int) -> F64:
    parts = Parts(tile)
    codes = unpack(side, 8, head_dim, parts)
    return rotate_back(parts.float32() * E4M3[codes])


_k, _v = (Codec(partial(_encode, side), partial(_decode, side)) for side in "kv")
CODECS = (_k, _v)
