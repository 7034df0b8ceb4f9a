"""What fits a memory: the longest context and the largest batch, and what each KV type stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ._ffi import check, ffi, lib
from .engine import EngineOptions, plan
from .errors import ArgumentError, FullError, OutOfMemoryError

if TYPE_CHECKING:
    from .model import Model

_TILE = 64  # tokens encoded together
_MOST = 2**31 - 1  # of either count


def longest_context(model: Model, memory_bytes: int, options: EngineOptions) -> int:
    """The most tokens of context for which an engine with its weights fits, trained for or not; 0: not even one."""
    return _largest(lambda n: _fits(model, memory_bytes, {**options, "ctx": n}))


def largest_batch(model: Model, memory_bytes: int, options: EngineOptions) -> int:
    """The most sequences with a full context each for which an engine fits; 0: not even one."""
    return _largest(lambda n: _fits(model, memory_bytes, {**options, "seqs": n}))


def _fits(model: Model, memory_bytes: int, options: EngineOptions) -> bool:
    try:
        return plan(model, **options).n_total_bytes <= memory_bytes
    except (ArgumentError, FullError, OutOfMemoryError):  # beyond what the library counts
        return False


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest n that fits, if every smaller one does."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high < _MOST and fits(high):
        low, high = high, min(2 * high, _MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def tile_bits(kv: str, side: str, head_dim: int) -> float:
    """Bits per element of the encoded keys (side "k") or values ("v") of a KV type, scales included.

    Raises:
        ArgumentError: no such type.
        UnsupportedError: it cannot take the head_dim.
    """
    n_bytes = ffi.new("uint64_t *")
    check(lib.pykvq_kv_tile_bytes(kv.encode(), side.encode(), head_dim, n_bytes))
    return n_bytes[0] * 8 / (_TILE * head_dim)
