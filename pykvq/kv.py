"""The KV types: how a cache can be stored."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from ._ffi import check, ffi, lib, text

# For editors and type checkers; the library's table decides.
KVTypeName: TypeAlias = Literal[
    "f16",
    "q8_0",
    "q4_0",
    "fp8",
    "nvfp4",
    "kivi4",
    "kivi2",
    "kivi2_g64",
    "turbo4",
    "turbo3",
    "turbo2",
    "turbo3.5",
    "turbo2.5",
    "kvarn4",
    "kvarn3",
    "kvarn2",
    "tier3",
    "tier2",
]


class KVType(NamedTuple):
    """What the `kv` option of an engine takes."""

    name: str
    summary: str  # when to use it
    sink: int  # first tokens that stay in f16, unless set otherwise
    tail: int | None  # newest tokens that stay in f16; None: all of them


def kv_types() -> list[KVType]:
    """All KV types."""
    types: list[KVType] = []
    raw = ffi.new("pykvq_kv_type *")
    for i in range(lib.pykvq_n_kv_types()):
        check(lib.pykvq_kv_type_at(i, raw))
        tail = None if raw.tail == 2**32 - 1 else int(raw.tail)
        types.append(KVType(text(raw.name), text(raw.summary), int(raw.sink), tail))
    return types
