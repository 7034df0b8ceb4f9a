"""Every instruction set encodes to the bytes of the references, which are what "scalar" runs; test_codecs.py holds the
widest set against the oracle and the committed bytes."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiles import KV_TYPES, SIDES, TILE, encode, kinds_of_data, powers_of_two, tile_bytes

from pykvq import errors
from pykvq._ffi import check, ffi, lib

ISAS = [isa for isa in ("avx2", "avx512", "neon") if lib.pykvq_cpu_select(isa.encode()) == lib.PYKVQ_OK]
lib.pykvq_cpu_select(ffi.NULL)
CODECS = [(t, s) for t in KV_TYPES for s in SIDES]
HEAD_DIMS = range(16, 257, 16)


@pytest.fixture(autouse=True)
def widest() -> Iterator[None]:
    yield
    check(lib.pykvq_cpu_select(ffi.NULL))


def takes(kv_type: str, side: str, head_dim: int) -> bool:
    try:
        return tile_bytes(kv_type, side, head_dim) > 0
    except errors.UnsupportedError:
        return False


def bytes_with(isa: str, kv_type: str, side: str, x: np.ndarray) -> bytes:
    check(lib.pykvq_cpu_select(isa.encode()))
    return encode(kv_type, side, x)


def difference(kv_type: str, side: str, x: np.ndarray) -> list[tuple[str, int]]:
    """Instruction sets whose bytes are not the reference's, with the first that differs."""
    want = np.frombuffer(bytes_with("scalar", kv_type, side, x), np.uint8)
    found = {isa: np.frombuffer(bytes_with(isa, kv_type, side, x), np.uint8) for isa in ISAS}
    return [(isa, int(np.argmax(got != want))) for isa, got in found.items() if (got != want).any()]


@pytest.mark.parametrize(("kv_type", "side"), CODECS)
def test_kinds_of_data(kv_type: str, side: str) -> None:
    for head_dim in filter(lambda n: takes(kv_type, side, n), HEAD_DIMS):
        for name, x in kinds_of_data(head_dim).items():
            assert difference(kv_type, side, x) == [], (head_dim, name)


def ties(head_dim: int, random: np.random.RandomState) -> np.ndarray:
    """Half steps of the scales that uniform codes of 2 and 4 bits start from."""
    top = random.choice([3, 15], (TILE, head_dim))
    x = random.randint(0, 2 * top + 1).astype(np.float32) / 2
    x[::16] = 0
    x[1::16] = top[1::16]
    return x * random.choice([1, -1])


def on_midpoints(head_dim: int, random: np.random.RandomState) -> np.ndarray:
    """One channel in each token: rotated, all are equal, so sums and comparisons are of one number many times."""
    x = np.zeros((TILE, head_dim), np.float32)
    x[np.arange(TILE), random.randint(0, head_dim, TILE)] = random.choice([-6, -5, -1.25, 0.25, 0.75, 2.5, 448], TILE)
    return x


def bad_numbers(head_dim: int, random: np.random.RandomState) -> np.ndarray:
    x = random.standard_normal((TILE, head_dim)).astype(np.float32)
    bad = [
        np.nan,
        -np.nan,
        np.inf,
        -np.inf,
        65504,
        -65504,
        65505,
        65504.004,
        -65519.9,
        1e30,
        -3e38,
        1e-45,
        -1e-45,
        -0.0,
    ]
    at = random.rand(TILE, head_dim) < random.choice([0.001, 0.02, 0.5, 1])
    x[at] = random.choice(np.array(bad, np.float32), at.sum())
    return x


def every_magnitude(head_dim: int, random: np.random.RandomState) -> np.ndarray:
    x = random.standard_normal((TILE, head_dim)).astype(np.float32)
    sizes = [powers_of_two(shape, -148, 14, int(random.randint(1 << 30))) for shape in ((TILE, 1), (1, head_dim))]
    return x * sizes[0] if random.rand() < 0.5 else x * sizes[1]


def few_values(head_dim: int, random: np.random.RandomState) -> np.ndarray:
    return random.choice(random.standard_normal(random.randint(1, 5)).astype(np.float32), (TILE, head_dim))


@pytest.mark.parametrize("make", [ties, on_midpoints, bad_numbers, every_magnitude, few_values])
@given(seed=st.integers(0, 2**32 - 1), codec=st.sampled_from(CODECS), head_dim=st.sampled_from(HEAD_DIMS))
@settings(max_examples=300, deadline=None)
def test_hard_data(
    make: Callable[[int, np.random.RandomState], np.ndarray], seed: int, codec: tuple[str, str], head_dim: int
) -> None:
    if takes(*codec, head_dim):
        assert difference(*codec, make(head_dim, np.random.RandomState(seed))) == []
