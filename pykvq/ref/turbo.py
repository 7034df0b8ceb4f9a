"""turbo4, turbo3, turbo2, turbo3.5, turbo2.5 (TurboQuant, arXiv 2504.19874): rotated tokens on a Lloyd-Max codebook.

The rotated channels of a token, divided by their root mean square (or a tenth less or more, whichever fits best), take
the nearest centroid of the best codebook for a normal distribution; one scale per token puts the size back, by least
squares for keys, unbiased for values. Tile: codes, scales (half floats).

turbo3.5 and turbo2.5 do that twice: the half of the channels with most energy in the tile gets one bit more. Tile:
codes of the wide channels, codes of the narrow ones, both sets' scales, and a mask of the wide channels, one bit each.
"""

from functools import partial

import numpy as np

from pykvq.ref.pack import pack, unpack
from pykvq.ref.tile import F16, F32, F64, TILE, U8, Codec, Parts, half, reciprocal, rotate, rotate_back, total

_POSITIVE = {
    2: [0.452780, 1.510418],
    3: [0.245094, 0.756005, 1.343909, 2.151946],
    4: [0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.732590],
}
CENTROIDS = {bits: np.array([-c for c in half_[::-1]] + half_, np.float32) for bits, half_ in _POSITIVE.items()}


def _round(y: F32, bits: int, size: F32) -> tuple[U8, F32, F32]:
    """Give the codes of tokens divided by their size, and the sums of y * centroid and of centroid^2."""
    centroids = CENTROIDS[bits]
    midpoints = (centroids[:-1] + centroids[1:]) * np.float32(0.5)
    normal = y * reciprocal(size)[:, None]
    codes = np.searchsorted(midpoints, normal.ravel(), side="left").reshape(y.shape).astype(np.uint8)
    return codes, total(y * centroids[codes], 1), total(centroids[codes] * centroids[codes], 1)


def _encode_set(side: str, bits: int, x: F32) -> tuple[bytes, F16]:
    y = rotate(x)
    yy = total(y * y, 1)
    rms = np.sqrt(yy / np.float32(y.shape[1]))
    best, most = np.ones_like(rms), np.full_like(rms, -1)
    for stretch in np.array([1, 0.90625, 1.09375], np.float32):
        _, yc, cc = _round(y, bits, rms * stretch)
        wins = yc * yc / cc > most
        best, most = np.where(wins, stretch, best), np.where(wins, yc * yc / cc, most)
    codes, yc, cc = _round(y, bits, rms * best)
    safe = np.where(yc > 0, yc, np.float32(1))
    scale = np.where(yc > 0, yc / cc if side == "k" else yy / safe, np.float32(0))
    return pack(side, bits, codes), half(scale)


def _decode_set(codes: U8, bits: int, scale: F64) -> F64:
    return rotate_back(scale[:, None] * CENTROIDS[bits][codes].astype(np.float64))


def _encode(side: str, bits: int, x: F32) -> bytes:
    codes, scale = _encode_set(side, bits, x)
    return codes + scale.tobytes()


def _decode(side: str, bits: int, tile: U8, head_dim: int) -> F64:
    parts = Parts(tile)
    codes = unpack(side, bits, head_dim, parts)
    return _decode_set(codes, bits, parts.halfs(TILE))


def codecs(bits: int) -> tuple[Codec, Codec]:
    """Give the K and the V codec of turbo4, turbo3 or turbo2."""
    k, v = (Codec(partial(_encode, s, bits), partial(_decode, s, bits)) for s in "kv")
    return k, v


def _n_wide(head_dim: int) -> int:
    return head_dim // 32 * 16  # half of the channels, in sixteens


def _split_encode(side: str, bits: int, x: F32) -> bytes:
    n_wide = _n_wide(x.shape[1])
    wide = np.zeros(x.shape[1], bool)
    wide[np.argsort(-total(x * x, 0), kind="stable")[:n_wide]] = True
    wide_codes, wide_scale = _encode_set(side, bits + 1, x[:, wide])
    narrow_codes, narrow_scale = _encode_set(side, bits, x[:, ~wide])
    mask = np.packbits(wide, bitorder="little")
    return wide_codes + narrow_codes + wide_scale.tobytes() + narrow_scale.tobytes() + mask.tobytes()


def _split_decode(side: str, bits: int, tile: U8, head_dim: int) -> F64:
    parts, n_wide, x = Parts(tile), _n_wide(head_dim), np.empty((TILE, head_dim))
    wide_codes = unpack(side, bits + 1, n_wide, parts)
    narrow_codes = unpack(side, bits, head_dim - n_wide, parts)
    wide_scale, narrow_scale = parts.halfs(TILE), parts.halfs(TILE)
    wide = np.unpackbits(parts.bytes(head_dim // 8), bitorder="little").astype(bool)
    x[:, wide] = _decode_set(wide_codes, bits + 1, wide_scale)
    x[:, ~wide] = _decode_set(narrow_codes, bits, narrow_scale)
    return x


def split_codecs(bits: int) -> tuple[Codec, Codec]:
    """Give the K and the V codec of turbo3.5 (bits 3) or turbo2.5 (bits 2)."""
    k, v = (Codec(partial(_split_encode, s, bits), partial(_split_decode, s, bits)) for s in "kv")
    return k, v
