"""Every weight type against gguf.quants, bit for bit."""

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from pykvq._native import ffi, lib

ROOT = Path(__file__).resolve().parents[2]


def weight_types() -> list[gguf.GGMLQuantizationType]:
    info = ffi.new("pykvq_weight_type *")
    kinds = []
    for i in range(lib.pykvq_n_weight_types()):
        assert lib.pykvq_weight_type_at(i, info) == lib.PYKVQ_OK
        kind = gguf.GGMLQuantizationType(info.id)
        assert ffi.string(info.name).decode() == kind.name
        assert (info.block_elements, info.block_bytes) == gguf.GGML_QUANT_SIZES[kind]
        kinds.append(kind)
    return kinds


def expected(blocks: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(blocks.copy(), kind).ravel()


def dequantize(blocks: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    n = blocks.shape[0] * gguf.GGML_QUANT_SIZES[kind][0]
    out = np.empty(n, dtype=np.float32)
    src, dst = ffi.from_buffer(blocks), ffi.from_buffer("float[]", out)
    assert lib.pykvq_weight_dequantize(kind, src, blocks.nbytes, dst, n) == lib.PYKVQ_OK
    return out


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    """The same float32 bits, so also the sign of zero; NaN where it is NaN."""
    assert want.dtype == np.float32
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], want.view(np.uint32)[~nan])


TYPES = weight_types()


def test_every_type_that_gguf_can_dequantize():
    oracle = {kind for kind in gguf.GGMLQuantizationType if can_dequantize(kind)}
    assert set(TYPES) == oracle
    assert len(TYPES) == len(oracle) >= 26


def can_dequantize(kind: gguf.GGMLQuantizationType) -> bool:
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_random_bytes(kind):
    rng = np.random.default_rng(kind.value)
    n_elements, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (max(500, 50_000 // n_elements), n_bytes), dtype=np.uint8)
    assert_same_bits(dequantize(blocks, kind), expected(blocks, kind))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_adversarial_bytes(kind):
    """Infinite, NaN, subnormal and zero scales, wherever the scales are: every pattern at every even offset."""
    rng = np.random.default_rng(100 + kind.value)
    n_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    rows = [np.full(n_bytes, byte, dtype=np.uint8) for byte in range(256)]
    for half in (0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFFFF):
        for offset in range(0, n_bytes - 1, 2):
            row = rng.integers(0, 256, n_bytes, dtype=np.uint8)
            row[offset], row[offset + 1] = half & 0xFF, half >> 8
            rows.append(row)
    blocks = np.stack(rows)
    assert_same_bits(dequantize(blocks, kind), expected(blocks, kind))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_any_address(kind):
    """Blocks need no alignment: a tensor lies where the file puts it."""
    rng = np.random.default_rng(200 + kind.value)
    n_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    raw = rng.integers(0, 256, 8 * n_bytes + 1, dtype=np.uint8)
    blocks = raw[1:].reshape(8, n_bytes)
    assert_same_bits(dequantize(blocks, kind), expected(blocks, kind))


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16], ids=lambda k: k.name)
def test_every_half(kind):
    blocks = np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    assert_same_bits(dequantize(blocks, kind), expected(blocks, kind))


def test_iq_tables_are_those_of_gguf():
    script = ROOT / "tools/gen_iq_tables.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
