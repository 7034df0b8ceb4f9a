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

SMALL = 10**9  # parameters: models of fewer show every lost bit


class KVType(NamedTuple):
    """What the `kv` option of an engine takes."""

    name: str
    summary: str  # when to use it
    sink: int  # first tokens that stay in f16, unless set otherwise
    tail: int | None  # newest tokens that stay in f16; None: all of them
    instead: str | None  # what models of under SMALL parameters should take instead


def kv_types() -> list[KVType]:
    """All KV types."""
    types: list[KVType] = []
    raw = ffi.new("pykvq_kv_type *")
    for i in range(lib.pykvq_n_kv_types()):
        check(lib.pykvq_kv_type_at(i, raw))
        tail = None if raw.tail == 2**32 - 1 else int(raw.tail)
        instead = text(raw.instead) if raw.instead else None
        types.append(KVType(text(raw.name), text(raw.summary), int(raw.sink), tail, instead))
    return types


def unfit(n_params: int, type_k: str) -> str | None:
    """In words, why a model of so many parameters should store its keys otherwise; None: this type suits it."""
    instead = next((kv.instead for kv in kv_types() if kv.name == type_k), None)
    if instead is None or n_params >= SMALL:
        return None
    return f"{type_k} changes more than one in ten likeliest tokens of models this small; {instead} loses less"
