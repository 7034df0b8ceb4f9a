"""The encoders: what they write is read by others, loses little, and does not depend on machine or threads."""

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvq import ArgumentError, NumericError, UnsupportedError
from pykvq._native import ffi, lib
from pykvq.weights import Loss, convert_rows, weight_type, weight_types

TYPES = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# relative error on normal noise: the theory of a uniform quantizer with a scale per group, and a little room
BOUNDS = {
    "Q8_0": 0.0055, "Q6_K": 0.0175, "Q5_K": 0.036, "Q5_1": 0.035, "Q5_0": 0.042, "Q4_K": 0.072, "Q4_1": 0.072,
    "IQ4_NL": 0.076, "Q4_0": 0.083, "Q3_K": 0.148, "Q2_K": 0.28,
}  # fmt: skip
F32 = weight_type("F32")


def noise(n_rows: int = 64, n_per_row: int = 1024, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n_rows, n_per_row)) * 0.02).astype(np.float32)


def weights(n_per_row: int, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n_per_row) ** 2 + 0.05).astype(np.float32)


def encode(x: np.ndarray, name: str, **options) -> tuple[np.ndarray, Loss]:
    return convert_rows(x, F32, weight_type(name), x.shape, **options)


def decode(data: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """By the gguf package: the encoder and its judge share nothing."""
    rows = data.reshape(shape[0], -1)
    return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name]).reshape(shape)


def relative(x: np.ndarray, y: np.ndarray, importance: np.ndarray | float = 1.0) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.sqrt((importance * (x - y) ** 2).sum() / (importance * x**2).sum())


@pytest.mark.parametrize("name", TYPES)
def test_error(name):
    x = noise()
    data, loss = encode(x, name)
    y = decode(data, name, x.shape)
    assert relative(x, y) < BOUNDS[name]
    assert loss.n == x.size
    np.testing.assert_allclose(loss.relative, relative(x, y), rtol=1e-4)
    np.testing.assert_allclose(loss.max_error, np.abs(x - y).max(), rtol=1e-5)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_no_worse_than_the_plain_rounding_of_the_gguf_package(name):
    x = noise(seed=3)
    kind = gguf.GGMLQuantizationType[name]
    plain = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
    assert relative(x, decode(encode(x, name)[0], name, x.shape)) <= relative(x, plain) * 1.0001


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_no_worse_than_llama_cpp(name, weighted):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    base = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so*"))))
    base.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    x = noise(seed=4)
    importance = weights(x.shape[1]) if weighted else None
    theirs = np.empty(weight_type(name).n_bytes(x.size), np.uint8)
    pointer = importance.ctypes.data if importance is not None else None
    base.ggml_quantize_chunk(weight_type(name).id, x.ctypes.data, theirs.ctypes.data, 0, *x.shape, pointer)
    ours, _ = encode(x, name, importance=importance)
    judge = 1.0 if importance is None else importance
    errors = [relative(x, decode(data, name, x.shape), judge) for data in (ours, theirs)]
    room = 1.06 if weighted and name in ("Q2_K", "Q3_K") else 1.001  # ours count errors in large elements for more
    assert errors[0] <= errors[1] * room


@pytest.mark.parametrize("name", [name for name in TYPES if name != "Q8_0"])
def test_importance_moves_the_error(name):
    """Errors in important columns shrink; those in the others may grow."""
    x, importance = noise(seed=5), np.ones(1024, np.float32)
    importance[::7] = 100.0
    plain, weighted = (decode(encode(x, name, importance=w)[0], name, x.shape) for w in (None, importance))
    assert relative(x[:, ::7], weighted[:, ::7]) < 0.9 * relative(x[:, ::7], plain[:, ::7])
    assert relative(x, weighted, importance) < relative(x, plain, importance)


@pytest.mark.parametrize("name", TYPES)
def test_same_bytes_everywhere(name):
    """Whatever the instruction set and the number of threads; also where the last batch of groups is not full."""
    x, importance = noise(7, 768, seed=6), weights(768)
    isas = ["scalar", "avx2", "avx512", "neon"]
    for options in {}, {"importance": importance}:
        expected, _ = encode(x, name, **options)
        for threads in 1, 2, 5:
            np.testing.assert_array_equal(encode(x, name, threads=threads, **options)[0], expected)
        try:
            for isa in isas:
                if lib.pykvq_cpu_select(isa.encode()) == lib.PYKVQ_OK:
                    np.testing.assert_array_equal(encode(x, name, **options)[0], expected, err_msg=isa)
        finally:
            lib.pykvq_cpu_select(ffi.NULL)


@pytest.mark.parametrize("name", TYPES)
def test_what_a_type_can_hold_survives(name):
    """Numbers that came out of blocks go back into them almost without loss."""
    x = decode(encode(noise(seed=8), name)[0], name, (64, 1024))
    again, _ = encode(x, name)
    assert relative(x, decode(again, name, x.shape)) < 0.15 * BOUNDS[name]


@pytest.mark.parametrize("name", TYPES)
def test_special_rows(name):
    """Zeros stay zeros, constants stay what they are, one outlier does not become infinite, tiny numbers do no harm."""
    x = np.zeros((6, 512), np.float32)
    x[1] = 0.25
    x[2] = -0.25
    x[3, 100] = 1000.0
    x[4] = 1e-30
    x[5] = np.linspace(-1, 1, 512)
    y = decode(encode(x, name)[0], name, x.shape)
    assert np.isfinite(y).all()
    assert (y[0] == 0).all()
    np.testing.assert_allclose(y[1:3], x[1:3], rtol=0.02)
    np.testing.assert_allclose(y[3, 100], 1000.0, rtol=0.01)
    assert np.abs(np.delete(y[3], 100)).max() <= 1000.0 * BOUNDS[name]
    assert np.abs(y[4]).max() < 1e-4


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(TYPES),
    n_rows=st.integers(1, 5),
    n_blocks=st.integers(1, 3),
    scale=st.floats(1e-6, 1e4),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_scale(name, n_rows, n_blocks, scale, seed):
    kind = weight_type(name)
    x = noise(n_rows, n_blocks * kind.block_elements, seed) * np.float32(50 * scale)
    y = decode(encode(x, name)[0], name, x.shape)
    if scale > 1e-2:  # below, f16 scales lose bits
        assert relative(x, y) < 2 * BOUNDS[name]
    assert np.isfinite(y).all()


@pytest.mark.parametrize("old", ["F16", "BF16", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("new", ["F32", "F16", "BF16", "Q4_K"])
def test_between_types(old, new):
    """Each source is decoded exactly, then encoded as if it had been float."""
    source, _ = encode(noise(seed=9), old)
    exact = decode(source, old, (64, 1024)).astype(np.float32)
    data, _ = convert_rows(source, weight_type(old), weight_type(new), (64, 1024))
    np.testing.assert_array_equal(data, encode(exact, new)[0])
    if new in ("F32", "F16"):
        expected = exact.astype(np.float32 if new == "F32" else np.float16)
        np.testing.assert_array_equal(data.view(expected.dtype), expected.ravel())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["Q4_K", "F16"])
def test_values_that_are_not_finite(name, bad):
    x = noise()
    x[63, 1023] = bad
    with pytest.raises(NumericError, match="not finite"):
        encode(x, name)


@pytest.mark.parametrize("name", ["F16", "Q4_0", "Q4_K"])
def test_values_too_large_for_f16(name):
    x = noise()
    x[3, 4] = 1e9
    with pytest.raises(NumericError, match=f"too large for {name}"):
        encode(x, name)


def test_bad_arguments():
    x = noise()
    with pytest.raises(UnsupportedError, match="IQ2_XXS: this build cannot quantize to it"):
        encode(x, "IQ2_XXS")
    with pytest.raises(UnsupportedError, match="Q9_X: not supported; known are F32"):
        weight_type("Q9_X")
    with pytest.raises(ArgumentError, match="100 elements"):
        encode(x[:, :100], "Q4_0")
    with pytest.raises(ArgumentError, match=r"importance: shape \(5,\)"):
        encode(x, "Q4_0", importance=np.ones(5, np.float32))
    with pytest.raises(ArgumentError, match="importance: element 7 is -1"):
        importance = np.ones(1024, np.float32)
        importance[7] = -1
        encode(x, "Q4_0", importance=importance)


def test_no_memory():
    """Every allocation may fail; nothing leaks."""
    x, importance = noise(), weights(1024)
    before = lib.pykvq_allocated_bytes()
    for n in range(20):
        lib.pykvq_fail_allocation(n)
        try:
            encode(x, "Q4_K", importance=importance)
            break
        except MemoryError:
            assert lib.pykvq_allocated_bytes() == before
    else:
        pytest.fail("it never succeeded")
    lib.pykvq_fail_allocation(2**64 - 1)
    assert n > 2


def test_types_are_those_of_the_format():
    for name in TYPES:
        kind = weight_types()[name]
        assert (kind.block_elements, kind.block_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind.id)]
