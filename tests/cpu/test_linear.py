"""Weights times activations, every type on every instruction set, against float64 numpy over the dequantized weights.

Activations are rounded to int8 in groups of 32 before they meet quantized weights, to the nearest multiple of
max|x| / 127; so an output may be off by sum over groups of max|x| / 254 * sum|w|, and by what float32 sums of the
groups round. Activations that are such multiples must give the float64 product up to that rounding alone.
"""

from __future__ import annotations

import ctypes
import mmap

import gguf
import numpy as np
import pytest
from engine import tiny

import pykvq
from pykvq._ffi import check, ffi, lib

GROUP = 32
FLOATS = {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16}


def weight_types() -> list[gguf.GGMLQuantizationType]:
    info = ffi.new("pykvq_weight_type *")
    kinds = []
    for i in range(lib.pykvq_n_weight_types()):
        check(lib.pykvq_weight_type_at(i, info))
        kinds.append(gguf.GGMLQuantizationType(info.id))
    return kinds


def available_isas() -> list[str]:
    names = [
        name for name in ("scalar", "avx2", "avx512", "neon") if lib.pykvq_cpu_select(name.encode()) == lib.PYKVQ_OK
    ]
    check(lib.pykvq_cpu_select(ffi.NULL))
    return names


TYPES = weight_types()
every_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)


@pytest.fixture(params=available_isas())
def isa(request):
    check(lib.pykvq_cpu_select(request.param.encode()))
    yield request.param
    check(lib.pykvq_cpu_select(ffi.NULL))


def dequantize(blocks: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(blocks.copy(), kind).reshape(len(blocks), -1)


def random_weights(rng, kind, n_out: int, n_in: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes (n_out, bytes of a row) and what they mean (n_out, n_in): any codes, scales within a factor of 10^4."""
    n_elements, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    if kind in FLOATS:
        rows = gguf.quants.quantize(rng.standard_normal((n_out, n_in), np.float32), kind).view(np.uint8)
        return rows, dequantize(rows.reshape(-1, n_bytes), kind).reshape(n_out, n_in).astype(np.float64)
    n_blocks = n_out * n_in // n_elements
    blocks = np.empty((0, n_bytes), np.uint8)
    while len(blocks) < n_blocks:
        more = rng.integers(0, 256, (4 * n_blocks + 100, n_bytes), np.uint8)
        largest = np.abs(dequantize(more, kind)).max(axis=1)
        blocks = np.concatenate([blocks, more[(largest > 1e-2) & (largest < 1e2)]])
    blocks = blocks[:n_blocks]
    return blocks.reshape(n_out, -1), dequantize(blocks, kind).reshape(n_out, n_in).astype(np.float64)


def matmul(kind, rows: np.ndarray, x: np.ndarray, n_threads: int = 1) -> np.ndarray:
    n_tokens, n_in = x.shape
    y = np.full((n_tokens, len(rows)), np.nan, np.float32)
    w = ffi.cast("void *", rows.ctypes.data)
    x_data, y_data = ffi.cast("float *", x.ctypes.data), ffi.cast("float *", y.ctypes.data)
    check(lib.pykvq_weight_matmul(kind, w, rows.nbytes, len(rows), n_in, x_data, n_tokens, y_data, n_threads))
    return y


def exact_activations(rng, kind, n_tokens: int, n_in: int) -> np.ndarray:
    """Activations that rounding leaves alone: multiples of a step, the largest of each group being 127 of it."""
    if kind in FLOATS:
        return rng.standard_normal((n_tokens, n_in), np.float32)
    codes = rng.integers(-127, 128, (n_tokens, n_in // GROUP, GROUP))
    codes[..., 5] = 127
    steps = 2.0 ** rng.integers(-3, 3, (n_tokens, n_in // GROUP, 1))
    return (codes * steps).reshape(n_tokens, n_in).astype(np.float32)


def sum_rounding(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What float32 sums may be off: every addition by half an ulp of at most sum|w x|; groups are added one by one,
    plain floats in runs of 32."""
    n_additions = 40 + x.shape[1] / 16
    return n_additions * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(w).T)


def code_rounding(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    largest = np.abs(x).astype(np.float64).reshape(len(x), -1, GROUP).max(axis=2)
    return largest / 254 @ np.abs(w).reshape(len(w), -1, GROUP).sum(axis=2).T


def widths(kind) -> list[int]:
    """One block, an odd number of blocks, and more than the 512 columns (128 of floats) that are unpacked at once."""
    if kind in FLOATS:
        return [1, 7, 100, 256, 579]
    n = gguf.GGML_QUANT_SIZES[kind][0]
    return [n, 3 * n, 5 * n] if n == 256 else [n, 3 * n, 576, 1088]


@every_type
def test_exact_activations(isa, kind):
    rng = np.random.default_rng(kind.value)
    for n_in in widths(kind):
        for n_out, n_tokens in [(1, 1), (5, 3), (16, 1), (33, 2), (50, 7), (48, 14)]:
            rows, w = random_weights(rng, kind, n_out, n_in)
            x = exact_activations(rng, kind, n_tokens, n_in)
            error = np.abs(matmul(kind, rows, x) - x.astype(np.float64) @ w.T)
            assert (error <= sum_rounding(w, x)).all(), (n_in, n_out, n_tokens)


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in FLOATS], ids=lambda kind: kind.name)
def test_rounded_activations(isa, kind):
    rng = np.random.default_rng(100 + kind.value)
    rows, w = random_weights(rng, kind, 64, 768)
    x = rng.standard_normal((9, 768), np.float32)
    want = x.astype(np.float64) @ w.T
    error = matmul(kind, rows, x) - want
    assert (np.abs(error) <= code_rounding(w, x) + sum_rounding(w, x)).all()
    # Roundings are even over a step and independent: their variance is a twelfth of the step's square.
    steps = np.abs(x).astype(np.float64).reshape(len(x), -1, GROUP).max(axis=2) / 127
    variance = steps**2 / 12 @ (w**2).reshape(len(w), -1, GROUP).sum(axis=2).T
    assert (error**2).mean() < 1.4 * variance.mean()
    x[:, ::97] *= 1000  # outliers coarsen only their own groups
    error = matmul(kind, rows, x) - x.astype(np.float64) @ w.T
    assert (np.abs(error) <= code_rounding(w, x) + sum_rounding(w, x)).all()


@every_type
def test_threads_and_batch_change_nothing(isa, kind):
    rng = np.random.default_rng(200 + kind.value)
    rows, _ = random_weights(rng, kind, 83, 1280)
    x = rng.standard_normal((15, 1280), np.float32)
    y = matmul(kind, rows, x)
    for n_threads in (2, 3, 8):
        np.testing.assert_array_equal(matmul(kind, rows, x, n_threads), y)
    for i in range(len(x)):
        np.testing.assert_array_equal(matmul(kind, rows, x[i : i + 1], 2)[0], y[i])
    np.testing.assert_array_equal(matmul(kind, rows, x[3:9]), y[3:9])


def test_more_tokens_than_a_work_item(isa):
    rng = np.random.default_rng(1)
    kind = gguf.GGMLQuantizationType.Q4_1
    rows, w = random_weights(rng, kind, 40, 96)
    x = exact_activations(rng, kind, 600, 96)
    y = matmul(kind, rows, x, 3)
    assert (np.abs(y - x.astype(np.float64) @ w.T) <= sum_rounding(w, x)).all()
    np.testing.assert_array_equal(matmul(kind, rows, x[599:]), y[599:])


@every_type
def test_no_numbers_stay_with_their_token(isa, kind):
    """NaN and infinity must reach the outputs of their token, where the engine looks for them, and no others."""
    rng = np.random.default_rng(300 + kind.value)
    rows, _ = random_weights(rng, kind, 20, 512)
    x = rng.standard_normal((5, 512), np.float32)
    clean = matmul(kind, rows, x)
    x[1, 17], x[3, 500] = np.nan, -np.inf
    y = matmul(kind, rows, x)
    assert not np.isfinite(y[[1, 3]]).any()
    np.testing.assert_array_equal(y[[0, 2, 4]], clean[[0, 2, 4]])
    assert not np.isfinite(matmul(kind, rows, x[1:2])).any()


@every_type
def test_tiny_and_zero_activations(isa, kind):
    rng = np.random.default_rng(400 + kind.value)
    rows, w = random_weights(rng, kind, 17, 256)
    assert (matmul(kind, rows, np.zeros((2, 256), np.float32)) == 0).all()
    for size in (1e-45, 1e-38, 1e-32, 1e-29, 1e32):  # a step of the smallest is no normal float
        x = (size * rng.standard_normal((2, 256))).astype(np.float32)
        limit = code_rounding(w, x) + sum_rounding(w, x) + 1e-30 * np.abs(w).sum(axis=1)
        assert (np.abs(matmul(kind, rows, x) - x.astype(np.float64) @ w.T) <= limit).all(), size


def at_page_end(array: np.ndarray) -> np.ndarray:
    """A copy whose last byte is the last one of a page, before a page that cannot be read."""
    n_pages = -(-array.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (n_pages + 1) * mmap.PAGESIZE)
    raw = np.frombuffer(memory, np.uint8)
    guard = ctypes.c_void_p(raw.ctypes.data + n_pages * mmap.PAGESIZE)
    assert ctypes.CDLL(None, use_errno=True).mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    end = n_pages * mmap.PAGESIZE
    copy = raw[end - array.nbytes : end].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


@every_type
def test_reads_end_with_the_data(isa, kind):
    """Weights are a mapped file that may end with a page; a read beyond it ends the process."""
    rng = np.random.default_rng(500 + kind.value)
    for n_in in widths(kind):
        for n_out, n_tokens in [(1, 1), (16, 1), (19, 8)]:
            rows, _ = random_weights(rng, kind, n_out, n_in)
            x = rng.standard_normal((n_tokens, n_in), np.float32)
            np.testing.assert_array_equal(matmul(kind, at_page_end(rows), at_page_end(x)), matmul(kind, rows, x))


def test_sums_biases_and_gates_of_odd_widths(isa, tmp_path, monkeypatch):
    """Panels of rows overlap where a width is no multiple of the lanes; the scalar kernels, with one lane, know nothing
    of panels. A model adds to its residual, has biases, and multiplies gates, with one token and with many."""
    for name, value in {"N_VOCAB": 167, "N_EMBD": 41, "N_FF": 75}.items():
        monkeypatch.setattr(tiny, name, value)
    path = tiny.write(tmp_path / "odd.gguf", n_ctx=256, key_bias=1)
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, tiny.N_VOCAB, 12)]

    def logits() -> np.ndarray:
        with pykvq.Model.open(path) as model, pykvq.Engine(model, threads=2, logits=16) as engine:
            sequence = engine.sequence()
            sequence.keep_logits(all_tokens=True)
            rows = []
            for run in (tokens[:9], *([t] for t in tokens[9:])):
                sequence.push(run)
                engine.step([sequence])
                rows.append(sequence.logits().copy())
            return np.concatenate(rows)

    got = logits()
    check(lib.pykvq_cpu_select(b"scalar"))
    want = logits()
    assert got.shape == (len(tokens), tiny.N_VOCAB) and want.std() > 0.3
    # 1e-6 apart, but where a key's or value's half float falls the other way; a wrong panel is wrong by about 1
    np.testing.assert_allclose(got, want, atol=2e-3)
    assert np.median(abs(got - want)) < 1e-4
