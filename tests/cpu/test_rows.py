"""Row kernels of each instruction set against float64 numpy; the kernel file is compiled here, as the build does it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cffi
import numpy as np
import pytest

from pykvq._ffi import check, lib
from pykvq._ffi import ffi as public_ffi

NATIVE = Path(__file__).parents[2] / "native"
FLAGS = {
    "scalar": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "avx512": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx512vnni",
        "-mavx512vbmi",
        "-mfma",
        "-mf16c",
    ],
    "neon": ["-march=armv8.2-a+fp16+dotprod"],
}
SIZES = [1, 3, 15, 16, 17, 64, 80, 200, 577]

compiler = shutil.which("cc")
pytestmark = pytest.mark.skipif(compiler is None, reason="needs a C compiler")

HEADER = (NATIVE / "src/cpu/row.h").read_text(encoding="utf-8")
KERNELS = HEADER[
    HEADER.index("typedef struct kvq_row_kernels") : HEADER.index("#endif", HEADER.index("} kvq_row_kernels;"))
]

ffi = cffi.FFI()
ffi.cdef("typedef enum kvq_activation { KVQ_SILU, KVQ_GELU_TANH } kvq_activation;" + KERNELS)
ffi.cdef("".join(f"extern kvq_row_kernels kvq_row_{isa};" for isa in FLAGS))


def available(isa: str) -> bool:
    found = lib.pykvq_cpu_select(isa.encode()) == lib.PYKVQ_OK
    check(lib.pykvq_cpu_select(public_ffi.NULL))
    return found


@pytest.fixture(scope="module", params=[isa for isa in FLAGS if available(isa)])
def row(request, tmp_path_factory):
    isa = request.param
    path = tmp_path_factory.mktemp("row") / f"{isa}.so"
    source = NATIVE / "src/cpu/kernels/row.c"
    options = ["-std=c11", "-O3", "-fPIC", "-shared", "-fno-math-errno", f"-DKVQ_ISA={isa}", f"-DKVQ_ISA_{isa}=1"]
    includes = [f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'src'}"]
    subprocess.run([compiler, *options, *FLAGS[isa], *includes, str(source), "-o", str(path), "-lm"], check=True)
    library = ffi.dlopen(str(path))
    yield getattr(library, f"kvq_row_{isa}")


def lib_enum(name):
    return ffi.typeof("kvq_activation").relements[name]


def floats(array):
    return ffi.cast("float *", array.ctypes.data)


def halfs(array):
    return ffi.cast("uint16_t *", array.ctypes.data)


def guarded(values):
    """A copy with NaN behind its end, and the whole of it: what lies behind must stay NaN."""
    whole = np.full(len(values) + 32, np.nan, np.float32)
    whole[: len(values)] = values
    return whole[: len(values)], whole


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_norm(row, n, add, in_place):
    rng = np.random.default_rng(n)
    x, whole = guarded(3 * rng.standard_normal(n))
    w, _ = guarded(rng.standard_normal(n))
    start = x.astype(np.float64)
    y, whole_y = (x, whole) if in_place else guarded(rng.standard_normal(n))
    before = y.astype(np.float64)
    row.norm(floats(x), floats(w), 1e-5, n, add, floats(y))
    want = start / np.sqrt(np.mean(start**2) + np.float32(1e-5)) * w + add * before
    np.testing.assert_allclose(y, want, rtol=4e-7, atol=4e-7)
    assert np.isnan(whole_y[n:]).all()


@pytest.mark.parametrize(("n_rot", "head_dim"), [(64, 64), (32, 80), (80, 80), (96, 96), (128, 128), (8, 16), (6, 16)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(row, n_rot, head_dim, interleaved):
    rng = np.random.default_rng(n_rot)
    x = rng.standard_normal(head_dim).astype(np.float32)
    angles = rng.uniform(-4, 4, n_rot // 2)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first = np.arange(0, n_rot, 2) if interleaved else np.arange(n_rot // 2)
    second = first + 1 if interleaved else first + n_rot // 2
    want = x.astype(np.float64)
    want[first], want[second] = x[first] * cos - x[second] * sin, x[second] * cos + x[first] * sin
    row.rope(floats(x), floats(cos), floats(sin), n_rot, interleaved)
    np.testing.assert_allclose(x, want, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("in_place", [False, True])
def test_activations(row, n, in_place):
    rng = np.random.default_rng(n)
    gate = (rng.standard_normal(n) * 10.0 ** rng.uniform(-3, 1.2, n)).astype(np.float32)
    up = rng.standard_normal(n).astype(np.float32)
    x = gate.astype(np.float64)
    silu = x / (1 + np.exp(-x))
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    gelu = 0.5 * x * (1 + np.tanh(u))
    for activation, want in ((lib_enum("KVQ_SILU"), silu), (lib_enum("KVQ_GELU_TANH"), gelu)):
        y, whole = guarded(gate if in_place else np.zeros(n))
        row.activate(activation, floats(y) if in_place else floats(gate), floats(up), n, floats(y))
        # the argument of exp is rounded to float32, so far from 0 the relative error grows with it
        np.testing.assert_allclose(y, want * up, rtol=1e-5, atol=1e-10)
        near = np.abs(x) < 2
        np.testing.assert_allclose(y[near], (want * up)[near], rtol=1e-6)
        assert np.isnan(whole[n:]).all()


@pytest.mark.parametrize("n", SIZES)
def test_softcap_is_accurate_near_zero_and_saturates(row, n):
    rng = np.random.default_rng(n)
    x, whole = guarded(rng.standard_normal(n) * 10.0 ** rng.uniform(-6, 3, n))
    want = 30 * np.tanh(x.astype(np.float64) / 30)
    row.softcap(30, n, floats(x))
    np.testing.assert_allclose(x, want, rtol=5e-7)
    assert np.isnan(whole[n:]).all()


def test_softcap_of_infinity_and_nan(row):
    x = np.tile(np.array([np.inf, -np.inf, np.nan, 0, 1e38, -1e38], np.float32), 6)
    row.softcap(5, len(x), floats(x))
    np.testing.assert_array_equal(x, np.tile(np.array([5, -5, np.nan, 0, 5, -5], np.float32), 6))


def test_every_half_float_survives_both_ways(row):
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = np.empty(1 << 16, np.float32)
    row.from_f16(halfs(bits), len(bits), floats(values))
    np.testing.assert_array_equal(values, bits.view(np.float16).astype(np.float32))
    back = np.empty_like(bits)
    row.to_f16(floats(values), len(values), halfs(back))
    finite = np.isfinite(values)
    np.testing.assert_array_equal(back[finite], bits[finite])
    np.testing.assert_array_equal(np.isnan(back.view(np.float16)), np.isnan(values))


@pytest.mark.parametrize("n", [*SIZES, 20000])
def test_rounding_to_half_floats_is_to_nearest_even(row, n):
    rng = np.random.default_rng(n)
    x = (rng.standard_normal(n) * 10.0 ** rng.uniform(-9, 6, n)).astype(np.float32)
    x[::5] = (rng.integers(0, 2048, len(x[::5])) + 0.5) * 2.0**-10  # half way, where it is representable
    y = np.full(n + 32, 0xABCD, np.uint16)
    row.to_f16(floats(x), n, halfs(y))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y[:n], x.astype(np.float16).view(np.uint16))
    assert (y[n:] == 0xABCD).all()
