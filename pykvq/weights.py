"""Weights from one GGML type to another, by the library's threaded C code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ._ffi import check, ffi, lib, text
from .errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class WeightType(NamedTuple):
    """How numbers are stored: blocks of so many elements in so many bytes."""

    name: str  # "Q4_K"
    id: int  # of GGML
    block_elements: int
    block_bytes: int

    def n_bytes(self, n_elements: int) -> int:
        """Size of whole blocks."""
        return n_elements // self.block_elements * self.block_bytes


@dataclass
class Loss:
    """What a conversion cost: sums over elements x before and y after."""

    n: int = 0
    squares: float = 0.0  # x^2
    squared_errors: float = 0.0  # (x - y)^2
    max_error: float = 0.0  # |x - y|

    def add(self, other: Loss) -> None:
        """Take the elements of another part in."""
        self.n += other.n
        self.squares += other.squares
        self.squared_errors += other.squared_errors
        self.max_error = max(self.max_error, other.max_error)

    @property
    def rmse(self) -> float:
        """Root of the mean squared error."""
        return math.sqrt(self.squared_errors / self.n) if self.n else 0.0

    @property
    def relative(self) -> float:
        """Root of the squared error over the squares: 0.07 is a typical 4-bit type."""
        return math.sqrt(self.squared_errors / self.squares) if self.squares else 0.0


@cache
def weight_types() -> dict[str, WeightType]:
    """All types that the library reads, by name."""
    types: dict[str, WeightType] = {}
    raw = ffi.new("pykvq_weight_type *")
    for i in range(lib.pykvq_n_weight_types()):
        check(lib.pykvq_weight_type_at(i, raw))
        name = text(raw.name)
        types[name] = WeightType(name, int(raw.id), int(raw.block_elements), int(raw.block_bytes))
    return types


def weight_type(name: str) -> WeightType:
    """The type of that name."""
    types = weight_types()
    if name not in types:
        raise UnsupportedError(f"weight type {name}: not supported; known are {', '.join(types)}")
    return types[name]


def convert_rows(
    src: Any,
    src_type: WeightType,
    dst_type: WeightType,
    shape: tuple[int, int],
    *,
    importance: npt.NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.uint8], Loss]:
    """Rows of weights in another type, and what it cost.

    Args:
        src: a C pointer, or an array of the bytes of `shape` elements of `src_type`.
        shape: (rows, elements of a row).
        importance: how much an error in each column counts, (elements of a row); default: all the same.
        threads: default: the cores that this process may use.

    Raises:
        NumericError: a value is not finite, or too large for the type.
        UnsupportedError: the library cannot quantize to the type.
    """
    import numpy as np

    n_rows, n_per_row = shape
    n = n_rows * n_per_row
    if not isinstance(src, ffi.CData):
        src = np.ascontiguousarray(src)
        if src.nbytes != src_type.n_bytes(n):
            raise ArgumentError(f"weights: {src.nbytes} bytes, expected {src_type.n_bytes(n)} for {n} {src_type.name}")
        src = ffi.from_buffer(src)
    dst = np.empty(dst_type.n_bytes(n), np.uint8)
    params = ffi.new("pykvq_weight_convert_params *")
    params.size = ffi.sizeof("pykvq_weight_convert_params")
    params.src_type, params.dst_type = src_type.id, dst_type.id
    params.n_rows, params.n_per_row = n_rows, n_per_row
    params.n_threads = threads or 0
    params.src, params.n_src_bytes = src, src_type.n_bytes(n)
    keep = ffi.from_buffer(dst, require_writable=True)
    params.dst, params.n_dst_bytes = keep, dst.nbytes
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        if importance.shape != (n_per_row,):
            raise ArgumentError(f"importance: shape {importance.shape}, expected ({n_per_row},)")
        weights = ffi.from_buffer("float[]", importance)
        params.importance = weights
    raw = ffi.new("pykvq_weight_loss *")
    check(lib.pykvq_weight_convert(params, raw))
    return dst, Loss(n, raw.squares, raw.squared_errors, raw.max_error)
