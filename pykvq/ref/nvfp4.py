"""nvfp4: e2m1 floats of a rotated tile, an e4m3 scale for 16 channels of a token, one float32 scale for the tile.

x ~ tile_scale * e4m3[scale] * e2m1[code]. The tile's scale is its largest element / (4 * 448). A group's scale: of the
e4m3 codes from one below to six above the one that puts its largest element on 6, the one with the least squared error.
Tile: codes; scales [group][token]; the tile's scale.
"""

from functools import partial

import numpy as np

from pykvq.ref.pack import pack, unpack
from pykvq.ref.small_floats import E2M1, E4M3, to_e2m1, to_e4m3
from pykvq.ref.tile import F32, F64, TILE, U8, Codec, Parts, reciprocal, rotate, rotate_back, total

_GROUP = 16


def _round(x: F32, scale: F32) -> tuple[U8, F32]:
    codes = to_e2m1(x * reciprocal(scale)[..., None])
    difference = scale[..., None] * E2M1[codes].astype(np.float32) - x
    return codes, total(difference * difference, -1)


def _encode(side: str, x: F32) -> bytes:
    y = rotate(x)
    tile_scale = np.abs(y).max() / np.float32(4 * 448)
    groups = y.reshape(TILE, -1, _GROUP)
    start = to_e4m3(np.abs(groups).max(axis=2) * reciprocal(tile_scale) / np.float32(6)).astype(int)
    best, least = np.zeros(start.shape, int), np.full(start.shape, np.inf, np.float32)
    for code in (start + step for step in range(-1, 7)):
        allowed = (code >= 0) & (code <= 0x7E)
        _, error = _round(groups, tile_scale * E4M3[np.where(allowed, code, 0)].astype(np.float32))
        wins = allowed & (error < least)
        best, least = np.where(wins, code, best), np.where(wins, error, least)
    codes, _ = _round(groups, tile_scale * E4M3[best].astype(np.float32))
    scales = best.T.astype(np.uint8)
    return pack(side, 4, codes.reshape(y.shape)) + scales.tobytes() + tile_scale.astype(np.float32).tobytes()


def _decode(side: str, tile: U8, head_dim: int) -> F64:
    parts = Parts(tile)
    codes = unpack(side, 4, head_dim, parts)
    scales = E4M3[parts.bytes(head_dim // _GROUP * TILE).reshape(-1, TILE)]
    return rotate_back(parts.float32() * np.repeat(scales.T, _GROUP, axis=1) * E2M1[codes])


_k, _v = (Codec(partial(_encode, side), partial(_decode, side)) for side in "kv")
CODECS = (_k, _v)
