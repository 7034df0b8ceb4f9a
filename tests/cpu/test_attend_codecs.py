"""Attention over encoded pages against float64 over the decoded bytes, for every KV type.

Few rows take the integer kernels: queries and probabilities become integers, of 14 bits beside 8-bit codes and of 7
beside shorter ones. What that may cost follows from the arithmetic and the data (`rounding`), and an error is held to
twice that.
Many rows take the expanded tiles and plain float32.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from test_attend import available_isas, pointer, random_inputs

import pykvq
from pykvq import ref
from pykvq._ffi import check, ffi, lib

TILE = 64
ISAS = available_isas()


TYPES = [kv_type.name for kv_type in pykvq.kv_types()]
EXACT = ["f16", "fp8"]  # their kernels multiply floats
WIDE = [*EXACT, "q8_0"]
IN_ORIGINAL_BASIS = ("f16", "kivi", "tier")
# Codebooks rounded to levels of 7 bits (kernels/attend_levels.c): mean squared error relative to the mean square
LEVEL_ERROR = {"turbo4": 5.2e-5, "turbo3": 2.1e-5, "turbo2": 1.2e-7, "turbo3.5": 5.2e-5, "turbo2.5": 2.1e-5}


@pytest.fixture(params=ISAS)
def isa(request):
    check(lib.pykvq_cpu_select(request.param.encode()))
    yield request.param
    check(lib.pykvq_cpu_select(ffi.NULL))


def attend(q, k, v, kv_k, kv_v, *, sink=0, tail=0, window=0, scale=None, n_threads=1):
    o = np.full(q.shape, np.nan, np.float32)
    names = [ffi.new("char[]", name.encode()) for name in (kv_k, kv_v)]
    params = ffi.new("pykvq_kv_attend_params *")
    params.size = ffi.sizeof("pykvq_kv_attend_params")
    params.type_k, params.type_v = names
    params.n_q, params.n_head, params.head_dim = q.shape
    params.n_kv, params.n_head_kv = k.shape[:2]
    params.sink, params.tail, params.window, params.n_threads = sink, tail, window, n_threads
    params.scale = q.shape[2] ** -0.5 if scale is None else scale
    params.q, params.k, params.v, params.o = pointer(q), pointer(k), pointer(v), pointer(o)
    check(lib.pykvq_kv_attend(params))
    return o


def through_codec(x, name, side, sink, tail):
    """x (n_kv, n_head_kv, head_dim) as the cache holds it: f16, and whole tiles between sink and tail encoded."""
    x = x.astype(np.float16).astype(np.float32)
    n_kv, n_head_kv, head_dim = x.shape
    kv_type, n_bytes = ffi.new("char[]", name.encode()), ffi.new("uint64_t *")
    check(lib.pykvq_kv_tile_bytes(kv_type, side, head_dim, n_bytes))
    buffer = np.zeros(n_bytes[0] + 64, np.uint8)
    tile = ffi.cast("uint8_t *", buffer.ctypes.data + -buffer.ctypes.data % 64)
    for first in range(sink, (n_kv - tail) // TILE * TILE, TILE):
        for head in range(n_head_kv):
            part = np.ascontiguousarray(x[first : first + TILE, head])
            check(lib.pykvq_kv_encode(kv_type, side, head_dim, pointer(part), tile))
            check(lib.pykvq_kv_decode(kv_type, side, head_dim, tile, pointer(part)))
            x[first : first + TILE, head] = part
    return x


def by_head(q, k, v):
    """In float64, keys and values repeated for every query head."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    return q, *(np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))


def softmax(q, k, *, window=0, scale=None):
    """Logits and probabilities (n_head, n_q, n_kv); what is not seen is -inf."""
    (n_q, _, head_dim), n_kv = q.shape, len(k)
    logits = np.einsum("qhd,khd->hqk", q, k) * np.float32(head_dim**-0.5 if scale is None else scale)
    own = np.arange(n_kv - n_q, n_kv)[:, None]
    seen = np.arange(n_kv)[None] <= own
    if window:
        seen &= np.arange(n_kv)[None] > own - window
    logits = np.where(seen, logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return logits, p / p.sum(-1, keepdims=True)


def reference(q, k, v, **options):
    q, k, v = by_head(q, k, v)
    _, p = softmax(q, k, **options)
    o = np.einsum("hqk,khd->qhd", p, v)
    return o, np.sqrt(o**2 + np.einsum("hqk,khd->qhd", p**2, v**2))


def steps(name):
    """Integers from 0 to the largest of what is rounded beside codes of this type."""
    return np.inf if name in EXACT else 127 * 128 if name in WIDE else 127


def rounding(q, k, v, kv_k, kv_v, *, few, **options):
    """The relative error that independent roundings make, for keys and values as stored.

    A query with the channels' scales is rounded in steps of its largest element / 127: each element is off by step /
    sqrt(12). All channels' codes vary alike, so logits, which vary by std over tokens, are off by

        std * largest / (127 sqrt(12) rms of the query)

    and the outputs by that times p (v - o). The probabilities of a tile, with the tokens' scales, are dithered before
    they are rounded, which doubles the variance: step^2 / 6 for each of 64 tokens, times its level. A codebook that is
    itself rounded is off by LEVEL_ERROR of its square, in logits and values.
    """
    wide_q, k, v = by_head(q, k, v)
    logits, p = softmax(wide_q, k, **options)
    folded = wide_q * k.std(0)
    if not kv_k.startswith(IN_ORIGINAL_BASIS):
        folded = ref.tile.rotate(q.reshape(-1, q.shape[2])).reshape(q.shape)
    crest = np.abs(folded).max(-1) / np.maximum(np.sqrt(np.mean(folded**2, -1)), 1e-30)
    logit_variance = np.nanvar(np.where(np.isfinite(logits), logits, np.nan), -1).T  # (n_q, n_head)
    per_logit = LEVEL_ERROR.get(kv_k, 0) + few * crest**2 / (12 * steps(kv_k) ** 2)
    o = np.einsum("hqk,khd->qhd", p, v)
    moved = (
        np.einsum("hqk,khd->qhd", p**2, v**2)
        - 2 * o * np.einsum("hqk,khd->qhd", p**2, v)
        + o**2 * (p**2).sum(-1).T[..., None]
    )
    sized = p * np.sqrt(np.mean(v**2, -1)).T[:, None]  # with the tokens' scales
    padded = np.pad(sized, ((0, 0), (0, 0), (0, -p.shape[-1] % TILE)))
    largest = (padded.reshape(*p.shape[:2], -1, TILE).max(-1) ** 2).sum(-1).T
    per_value = few * TILE * largest / (6 * steps(kv_v) ** 2) + LEVEL_ERROR.get(kv_v, 0) * (sized**2).sum(-1).T
    error = per_logit * logit_variance * moved.mean(-1) + per_value
    return np.sqrt(error.mean() / np.mean(reference(q, k, v, **options)[1] ** 2))


def stored(k, v, kv_k, kv_v, sink=0, tail=0):
    return through_codec(k, kv_k, b"k", sink, tail), through_codec(v, kv_v, b"v", sink, tail)


def relative_error(q, k, v, kv_k, kv_v, *, sink=0, tail=0, n_threads=1, **options):
    """Against the size of the sum and of what is summed: the sum may cancel."""
    o = attend(q, k, v, kv_k, kv_v, sink=sink, tail=tail, n_threads=n_threads, **options)
    want, size = reference(q, *stored(k, v, kv_k, kv_v, sink, tail), **options)
    return np.sqrt(np.mean((o - want) ** 2) / np.mean(size**2))


def assert_close(q, k, v, kv_k, kv_v, *, sink=0, tail=0, n_threads=1, **options):
    error = relative_error(q, k, v, kv_k, kv_v, sink=sink, tail=tail, n_threads=n_threads, **options)
    few = q.shape[0] <= 16 or q.shape[0] * q.shape[1] // k.shape[1] <= 16
    assert error <= 1e-5 + 2 * rounding(q, *stored(k, v, kv_k, kv_v, sink, tail), kv_k, kv_v, few=few, **options)


@pytest.mark.parametrize("kv_v", TYPES)
@pytest.mark.parametrize("kv_k", TYPES)
def test_every_pair(isa, kv_k, kv_v):
    for n_q in (1, 9):
        assert_close(*random_inputs(1, 150, n_q, 6, 2, 64), kv_k, kv_v, tail=10)


def head_dims(name):
    out = ffi.new("uint64_t *")
    return [d for d in range(16, 257, 16) if not lib.pykvq_kv_tile_bytes(name.encode(), b"k", d, out)]


@pytest.mark.parametrize("name", TYPES)
def test_head_dims(isa, name):
    for head_dim in head_dims(name):
        for n_q in (1, 20):
            assert_close(*random_inputs(head_dim, 130, n_q, 2, 1, head_dim), name, name)


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 6, 7, 8])
@pytest.mark.parametrize("name", TYPES)
def test_query_heads_per_kv_head(isa, name, ratio):
    for n_q in (1, 2, 16, 70):
        assert_close(*random_inputs(ratio, 200, n_q, 2 * ratio, 2, 64), name, name, sink=64, tail=3)


@pytest.mark.parametrize("name", TYPES)
def test_windows_and_threads(isa, name):
    for n_q, window in ((1, 63), (2, 130), (7, 1), (64, 100)):
        inputs = random_inputs(window, 400, n_q, 6, 2, 64)
        assert_close(*inputs, name, name, window=window, sink=64, tail=64, n_threads=2)


@pytest.mark.parametrize("n_q", [1, 40])
@pytest.mark.parametrize("name", TYPES)
def test_many_small_probabilities_do_not_vanish(isa, name, n_q):
    """One token has 100 times the probability of each of 1500 others, which together outweigh it."""
    q, k, v = random_inputs(2, 1600, n_q, 3, 1, 64)
    k *= 0.02
    v += 1
    k[70] = q[0, 0] * np.log(100) * 8 / np.sum(q[0, 0] ** 2)
    assert relative_error(q, k, v, name, name) <= 4e-3


@pytest.mark.parametrize("name", TYPES)
def test_few_and_many_rows_agree(isa, name):
    """The integer kernels and the expanded tiles are two implementations of the same bytes."""
    q, k, v = random_inputs(3, 500, 30, 3, 1, 96)
    together = attend(q, k, v, name, name)[-1:]
    alone = attend(q[-1:].copy(), k, v, name, name)
    as_stored = stored(k, v, name, name)
    size = reference(q[-1:], *as_stored)[1]
    allowed = 1e-5 + 2 * rounding(q[-1:], *as_stored, name, name, few=True)
    assert np.sqrt(np.mean((together - alone) ** 2) / np.mean(size**2)) <= allowed


@functools.cache
def by_isa(name, n_q):
    results = {}
    for isa in ISAS:
        check(lib.pykvq_cpu_select(isa.encode()))
        results[isa] = attend(*random_inputs(4, 300, n_q, 6, 2, 80), name, name)
    check(lib.pykvq_cpu_select(ffi.NULL))
    return results


@pytest.mark.parametrize("n_q", [1, 40])
@pytest.mark.parametrize("name", TYPES)
def test_instruction_sets_agree(name, n_q):
    results = by_isa(name, n_q)
    for isa in ISAS:
        np.testing.assert_allclose(results[isa], results["scalar"], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", TYPES)
def test_keys_and_queries_of_zero(isa, name):
    q, k, v = random_inputs(5, 128, 1, 3, 1, 64)
    for zero_q, zero_k, zero_v in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        assert_close(q * zero_q, k * zero_k, v * zero_v + 1 - zero_v, name, name)
    assert_array_equal(attend(q, k, v * 0, name, name), 0)


@pytest.mark.parametrize("name", TYPES)
def test_a_query_that_is_not_a_number_says_so(isa, name):
    q, k, v = random_inputs(6, 128, 1, 6, 2, 64)
    q[0, 4, 17] = np.nan
    o = attend(q, k, v, name, name)
    assert np.isnan(o[0, 4]).all()
    assert np.isfinite(o[0, [0, 1, 2, 3, 5]]).all()


@pytest.mark.parametrize("name", TYPES)
def test_threads_do_not_change_a_bit(isa, name):
    for n_q in (1, 50):
        inputs = random_inputs(7, 2000, n_q, 6, 2, 64)
        assert_array_equal(attend(*inputs, name, name), attend(*inputs, name, name, n_threads=3))


@pytest.mark.parametrize("kv", TYPES)
def test_a_draft_gives_the_bits_of_one_token(isa, kv):
    """For every shape: the last of up to 16 queries within a tile, and alone."""
    rng = np.random.default_rng(31)
    for n_head, n_head_kv, head_dim in ((6, 3, 64), (14, 2, 64), (20, 1, 128), (8, 8, 96)):
        n_kv = 64 * int(rng.integers(2, 24)) + int(rng.integers(16, 65))
        n_q = int(rng.integers(2, 17))
        q, k, v = random_inputs(7, n_kv, n_q, n_head, n_head_kv, head_dim)
        options = {"sink": 64, "tail": 64, "n_threads": 2}
        many = attend(q, k, v, kv, kv, **options)
        assert_array_equal(many[-1:], attend(q[-1:].copy(), k, v, kv, kv, **options), f"{n_head} heads, {n_kv} tokens")
