"""Where the codes of a tile lie: one order for every codec.

A tile's codes are head_dim dot vectors of 64 bytes, each 16 lanes of 4 bytes: for K a lane is a token and its bytes are
4 consecutive channels, for V a lane is a channel and its bytes are 4 consecutive tokens. Codes of b bits put 8/b
consecutive vectors into one 64-byte word, the first in the lowest bits. Codes of 3 bits are a 2-bit plane and then a
1-bit plane.
"""

import numpy as np

from pykvq.ref.tile import TILE, U8, Parts


def dot_vectors(side: str, codes: U8) -> U8:
    """Order codes (64, n) as n dot vectors (n, 64)."""
    n = codes.shape[1]
    if side == "k":  # tokens (4, 16 lanes), channels (n/4, 4 bytes)
        return codes.reshape(4, 16, n // 4, 4).transpose(2, 0, 1, 3).reshape(n, 64)
    return codes.reshape(16, 4, n // 16, 16).transpose(2, 0, 3, 1).reshape(n, 64)  # channels are the lanes


def from_dot_vectors(side: str, vectors: U8) -> U8:
    """Undo dot_vectors."""
    n = len(vectors)
    if side == "k":
        return vectors.reshape(n // 4, 4, 16, 4).transpose(1, 2, 0, 3).reshape(TILE, n)
    return vectors.reshape(n // 16, 16, 16, 4).transpose(1, 3, 0, 2).reshape(TILE, n)


def _planes(bits: int) -> list[tuple[int, int]]:
    return [(2, 0), (1, 2)] if bits == 3 else [(bits, 0)]  # (width, lowest bit of the code)


def pack(side: str, bits: int, codes: U8) -> bytes:
    """Pack codes (64, n) of so many bits into 8 n bits bytes."""
    vectors, packed = dot_vectors(side, codes), b""
    for width, low in _planes(bits):
        fields = (vectors >> low & (1 << width) - 1).reshape(-1, 8 // width, 64)
        shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
        packed += np.bitwise_or.reduce(fields << shifts, axis=1).astype(np.uint8).tobytes()
    return packed


def unpack(side: str, bits: int, n: int, parts: Parts) -> U8:
    """Take the codes (64, n) from the parts of a tile."""
    vectors = np.zeros((n, 64), np.uint8)
    for width, low in _planes(bits):
        words = parts.bytes(8 * n * width).reshape(-1, 1, 64)
        shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
        vectors |= ((words >> shifts & (1 << width) - 1) << low).astype(np.uint8).reshape(n, 64)
    return from_dot_vectors(side, vectors)
