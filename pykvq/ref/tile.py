"""What the codecs share: float32 steps, sums in order, half floats, the rotation, reading a tile part by part."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TILE = 64  # tokens
F16_MAX = np.float32(65504)

U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Floats = NDArray[np.floating]  # float32 here; type checkers see float64 where numpy gives float32


class Codec(NamedTuple):
    """One side of a KV type: a finite tile (64, head_dim) to bytes, and bytes and head_dim back to numbers."""

    encode: Callable[[F32], bytes]
    decode: Callable[[U8, int], F64]


def load(x: F32) -> F32:
    """Put 0 for what no half float can hold: NaN, infinities, magnitudes beyond 65504."""
    x = np.asarray(x, np.float32)
    return np.where(np.abs(x) <= F16_MAX, x, np.float32(0))


def total(x: Floats, axis: int) -> F32:
    """Sum along an axis in index order, in float32."""
    return np.take(np.cumsum(x, axis=axis, dtype=np.float32), -1, axis=axis)


def reciprocal(x: F32) -> F32:
    """Divide 1 by x; 0 where x is too small for that."""
    x = np.asarray(x, np.float32)
    small = np.abs(x) <= np.float32(2.0**-126)
    return np.where(small, np.float32(0), np.float32(1) / np.where(small, np.float32(1), x))


def half(x: Floats) -> F16:
    """Round to half floats; the largest finite one beyond; a zero has no sign."""
    return np.clip(x, -F16_MAX, F16_MAX).astype(np.float16) + np.float16(0)


def rotate_block(head_dim: int) -> int:
    """Give the order of the Hadamard matrix: the largest power of two that divides head_dim."""
    return head_dim & -head_dim


def rotate_signs(head_dim: int) -> F32:
    """Give the sign of each channel: the top bit of a hash of its index."""
    mask, signs = 0xFFFFFFFF, np.ones(head_dim, np.float32)
    for channel in range(head_dim):
        hashed = (channel + 1) * 0x9E3779B1 & mask
        hashed = (hashed ^ hashed >> 15) * 0x85EBCA77 & mask
        if (hashed ^ hashed >> 13) >> 31:
            signs[channel] = -1
    return signs


def hadamard(order: int) -> F64:
    """Give the orthonormal Hadamard matrix of a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(order)


def rotate(x: F32) -> F32:
    """Rotate rows: times the signs, then Hadamard by blocks, as float32 butterflies with strides 1, 2, 4 and so on."""
    n_rows, head_dim = x.shape
    order, stride = rotate_block(head_dim), 1
    y = x * rotate_signs(head_dim)
    while stride < order:
        pairs = y.reshape(n_rows, -1, 2, stride)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        y, stride = np.stack([a + b, a - b], axis=2).reshape(n_rows, head_dim), stride * 2
    return y * np.float32(1 / np.sqrt(order))


def rotate_back(y: F64) -> F64:
    """Undo the rotation, in float64."""
    n_rows, head_dim = y.shape
    order = rotate_block(head_dim)
    return (y.reshape(n_rows, -1, order) @ hadamard(order)).reshape(n_rows, head_dim) * rotate_signs(head_dim)


class Parts:
    """Reads the parts of a tile one after the other."""

    def __init__(self, tile: U8):
        self.tile, self.at = tile, 0

    def bytes(self, n: int) -> U8:
        """Take the next n bytes."""
        part = self.tile[self.at : self.at + n]
        self.at += n
        return part

    def halfs(self, *shape: int) -> F64:
        """Take an array of half floats."""
        return self.bytes(int(np.prod(shape)) * 2).view(np.float16).reshape(shape).astype(np.float64)

    def float32(self) -> float:
        """Take one float32."""
        return float(self.bytes(4).view(np.float32)[0])
