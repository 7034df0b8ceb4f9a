"""Attention over f16 pages against float64 numpy: the error is at most twice that of a plain float32 implementation.

The library stores keys and values in f16 pages whose unwritten parts are NaN, in scrambled page order, and leaves pages
that fell out of every window unmapped; so reading what must not be read shows in every test here.
"""

from __future__ import annotations

import numpy as np
import pytest

from pykvq._ffi import check, ffi, lib

TILE = 64


def available_isas() -> list[str]:
    names = [
        name for name in ("scalar", "avx2", "avx512", "neon") if lib.pykvq_cpu_select(name.encode()) == lib.PYKVQ_OK
    ]
    lib.pykvq_cpu_select(ffi.NULL)
    return names


@pytest.fixture(params=available_isas())
def isa(request):
    check(lib.pykvq_cpu_select(request.param.encode()))
    yield request.param
    check(lib.pykvq_cpu_select(ffi.NULL))


def pointer(array):
    return ffi.NULL if array is None else ffi.cast("float *", array.ctypes.data)


def random_inputs(seed, n_kv, n_q, n_head, n_head_kv, head_dim):
    """Queries, keys, values; some channels of the keys and values are outliers, as in real models."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((n_q, n_head, head_dim), np.float32)
    k = rng.standard_normal((n_kv, n_head_kv, head_dim), np.float32)
    v = rng.standard_normal((n_kv, n_head_kv, head_dim), np.float32)
    k[..., :: max(1, head_dim // 3)] *= 12
    v[..., 1 :: max(1, head_dim // 2)] += 5
    return q, k, v


def attend(
    q, k, v, *, window=0, softcap=0.0, sink_logits=None, scale=None, n_threads=1, sink=0, tail=0xFFFFFFFF, kv="f16"
):
    n_q, n_head, head_dim = q.shape
    n_kv, n_head_kv, _ = k.shape
    o = np.full(q.shape, np.nan, np.float32)
    params = ffi.new("pykvq_kv_attend_params *")
    params.size = ffi.sizeof("pykvq_kv_attend_params")
    type_name = ffi.new("char[]", kv.encode())
    params.type_k = params.type_v = type_name
    params.n_head, params.n_head_kv, params.head_dim = n_head, n_head_kv, head_dim
    params.n_q, params.n_kv, params.sink, params.tail = n_q, n_kv, sink, tail
    params.window, params.softcap, params.n_threads = window, softcap, n_threads
    params.scale = head_dim**-0.5 if scale is None else scale
    params.q, params.k, params.v, params.o = pointer(q), pointer(k), pointer(v), pointer(o)
    params.sink_logits = pointer(sink_logits)
    check(lib.pykvq_kv_attend(params))
    return o


def reference(q, k, v, dtype, *, window=0, softcap=0.0, sink_logits=None, scale=None):
    """The same in plain numpy of this precision, over keys and values rounded to f16."""
    n_q, n_head, head_dim = q.shape
    n_kv, n_head_kv, _ = k.shape
    k, v = (np.repeat(x.astype(np.float16).astype(dtype), n_head // n_head_kv, axis=1) for x in (k, v))
    scale = dtype(np.float32(head_dim**-0.5 if scale is None else scale))
    logits = np.zeros((n_head, n_q, n_kv), dtype)
    for d in range(head_dim):  # one sum, channel after channel: what plain code does (einsum keeps several)
        logits += q[:, :, d].T.astype(dtype)[:, :, None] * k[:, :, d].T[:, None, :]
    logits *= scale
    if softcap:
        logits = dtype(softcap) * np.tanh(logits / dtype(softcap))
    own = np.arange(n_kv - n_q, n_kv)[:, None]
    seen = np.arange(n_kv)[None] <= own
    if window:
        seen &= np.arange(n_kv)[None] > own - window
    logits = np.where(seen, logits, -np.inf)
    top = logits.max(-1, keepdims=True)
    if sink_logits is not None:
        top = np.maximum(top, sink_logits.astype(dtype)[:, None, None])
    p = np.exp(logits - top)
    total = p.sum(-1, keepdims=True)
    if sink_logits is not None:
        total = total + np.exp(sink_logits.astype(dtype)[:, None, None] - top)
    return np.einsum("hqk,khd->qhd", p / total, v)


def assert_exact(q, k, v, **options):
    n_threads = options.pop("n_threads", 1)
    tiles = {name: options.pop(name) for name in ("sink", "tail") if name in options}
    o = attend(q, k, v, n_threads=n_threads, **tiles, **options)
    want = reference(q, k, v, np.float64, **options)
    plain = reference(q, k, v, np.float32, **options)
    error, plain_error = (np.sqrt(np.mean((x - want) ** 2)) for x in (o, plain))
    ulp = 2.0**-24 * np.sqrt(np.mean(want**2))
    assert error <= 2 * plain_error + ulp, (error / ulp, plain_error / ulp)


@pytest.mark.parametrize("n_kv", [1, 2, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("n_q", [1, 5, 16, 64, 200])
def test_lengths(isa, n_kv, n_q):
    n_q = min(n_q, n_kv)
    assert_exact(*random_inputs(n_kv, n_kv, n_q, 6, 2, 64))


@pytest.mark.parametrize("head_dim", [8, 16, 24, 64, 72, 80, 96, 112, 128, 160, 256])
@pytest.mark.parametrize("n_q", [1, 3, 40])
def test_head_dims(isa, head_dim, n_q):
    assert_exact(*random_inputs(head_dim, 150, n_q, 12, 4, head_dim))


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 5, 6, 7, 8, 16, 24])
@pytest.mark.parametrize("n_q", [1, 2, 7])
def test_query_heads_per_kv_head(isa, ratio, n_q):
    assert_exact(*random_inputs(ratio, 200, n_q, 2 * ratio, 2, 64))


@pytest.mark.parametrize("n_q", range(1, 17))
def test_query_counts(isa, n_q):
    assert_exact(*random_inputs(n_q, 333, n_q, 4, 2, 32))


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 128, 299, 300, 301])
@pytest.mark.parametrize("n_q", [1, 2, 66, 300])
def test_window(isa, window, n_q):
    assert_exact(*random_inputs(window, 300, n_q, 4, 2, 64), window=window)


@pytest.mark.parametrize("n_q", [1, 50])
@pytest.mark.parametrize("softcap", [5.0, 50.0])
def test_softcap(isa, n_q, softcap):
    assert_exact(*random_inputs(1, 200, n_q, 4, 2, 64), softcap=softcap)


@pytest.mark.parametrize("n_q", [1, 50])
@pytest.mark.parametrize("level", [-30.0, 0.0, 30.0])
def test_sink_logits(isa, n_q, level):
    sink_logits = np.linspace(level - 1, level + 1, 4, dtype=np.float32)
    assert_exact(*random_inputs(2, 200, n_q, 4, 2, 64), sink_logits=sink_logits)


def test_everything_at_once(isa):
    sink_logits = np.array([0.5, -1, 3, 2, 0, 1], np.float32)
    q, k, v = random_inputs(3, 517, 70, 6, 2, 80)
    assert_exact(q, k, v, sink_logits=sink_logits, softcap=20.0, window=130, scale=0.2, n_threads=2)


@pytest.mark.parametrize("n_q", [1, 6])
def test_large_logits_do_not_overflow(isa, n_q):
    q, k, v = random_inputs(4, 200, n_q, 6, 2, 64)
    for sign in (1, -1):  # nearly one-hot: a row's error is that of its two largest logits, of the order of 1e4
        want = reference(q * 100, sign * k, v, np.float64)
        np.testing.assert_allclose(attend(q * 100, sign * k, v), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n_q", [1, 4, 100, 700])
def test_threads_do_not_change_a_bit(isa, n_q):
    q, k, v = random_inputs(5, 3000, n_q, 6, 2, 64)
    one = attend(q, k, v)
    for n_threads in (2, 3, 5):
        np.testing.assert_array_equal(one, attend(q, k, v, n_threads=n_threads))


@pytest.mark.parametrize("n_kv", [256, 3000])
def test_any_partition_merges_to_the_same(isa, n_kv):
    """One token at a time, in small blocks, all at once: the work is cut apart, results differ by rounding only."""
    q, k, v = random_inputs(6, n_kv, 96, 6, 2, 64)
    together = attend(q, k, v)
    for n in (1, 5, 32):
        ends = range(n_kv - 96 + n, n_kv + 1, n)
        parts = [
            attend(q[end - n_kv + 96 - n : end - n_kv + 96].copy(), k[:end].copy(), v[:end].copy()) for end in ends
        ]
        parts = np.concatenate(parts)
        np.testing.assert_allclose(parts, together[: len(parts)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_q", [1, 6, 80])
@pytest.mark.parametrize(("sink", "tail"), [(0, 0), (64, 0), (64, 100), (0, 64), (128, 1)])
def test_encoded_pages_of_f16_equal_raw_pages(isa, n_q, sink, tail):
    q, k, v = random_inputs(7, 400, n_q, 6, 2, 64)
    assert_exact(q, k, v, sink=sink, tail=tail)
    np.testing.assert_array_equal(attend(q, k, v, sink=sink, tail=tail), attend(q, k, v))


@pytest.mark.parametrize("n_q", [1, 40])
def test_numbers_that_are_not_finite_do_not_spread(isa, n_q):
    q, k, v = random_inputs(8, 200, n_q, 6, 2, 64)
    bad_k, bad_v, made_k, made_v = k.copy(), v.copy(), k.copy(), v.copy()
    bad_k[150, 0, 3], made_k[150, 0, 3] = np.nan, 0
    bad_k[10, 1, 5], made_k[10, 1, 5] = -np.inf, -65504
    bad_v[20, 0, 7], made_v[20, 0, 7] = np.inf, 65504
    bad_v[199, 1, 0], made_v[199, 1, 0] = 1e6, 65504
    np.testing.assert_array_equal(attend(q, bad_k, bad_v), attend(q, made_k, made_v))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_head": 5}, "5 query heads"),
        ({"n_q": 0}, "0 query tokens"),
        ({"n_q": 300}, "300 query tokens"),
        ({"sink": 3}, "sink 3"),
        ({"head_dim": 60}, "head_dim 60"),
        ({"head_dim": 512}, "head_dim 512"),
        ({"size": 8}, "size"),
    ],
)
def test_impossible_arguments(change, sentence):
    q, k, v = random_inputs(9, 200, 1, 4, 2, 64)
    o = np.zeros_like(q)
    name = ffi.new("char[]", b"f16")
    values = {"size": ffi.sizeof("pykvq_kv_attend_params"), "type_k": name, "type_v": name, "n_head": 4, "n_head_kv": 2}
    values |= {"head_dim": 64, "n_q": 1, "n_kv": 200, "n_threads": 1, "scale": 0.1}
    values |= {"q": pointer(q), "k": pointer(k), "v": pointer(v), "o": pointer(o)} | change
    assert lib.pykvq_kv_attend(ffi.new("pykvq_kv_attend_params *", values)) != lib.PYKVQ_OK
    assert sentence in ffi.string(lib.pykvq_last_error()).decode()


def test_every_failing_allocation_is_reported_and_leaks_nothing():
    q, k, v = random_inputs(10, 200, 2, 4, 2, 64)
    before = lib.pykvq_allocated_bytes()
    n = 0
    try:
        while True:
            lib.pykvq_fail_allocation(n)
            try:
                attend(q, k, v, n_threads=2, tail=0)
                break
            except MemoryError:
                assert lib.pykvq_allocated_bytes() == before
            n += 1
    finally:
        lib.pykvq_fail_allocation(2**64 - 1)
    assert n >= 6
    assert lib.pykvq_allocated_bytes() == before
