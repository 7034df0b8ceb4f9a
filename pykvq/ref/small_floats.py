"""The small float formats as tables: e4m3 (OCP; 0x7f is NaN, largest 448) and e2m1 (largest 6), sign in the top bit."""

import numpy as np

from pykvq.ref.tile import F32, F64, U8

_E4M3 = [m * 2.0**-9 if m < 8 else (1 + m % 8 / 8) * 2.0 ** (m // 8 - 7) for m in range(127)]
E4M3 = np.array([*_E4M3, np.nan, *(-v for v in _E4M3), np.nan])  # (256)
_E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
E2M1 = np.array([*_E2M1, *(-v for v in _E2M1)])  # (16)


def _nearest(magnitudes: list[float], x: F64) -> U8:
    """Give the index of the nearest magnitude, ties to the even index; the last one beyond."""
    values = np.array(magnitudes)
    midpoints = (values[:-1] + values[1:]) / 2  # exact
    below, above = np.searchsorted(midpoints, x, side="left"), np.searchsorted(midpoints, x, side="right")
    return np.where(below % 2 == 0, below, above).astype(np.uint8)  # they differ only on a midpoint


def _signed(magnitudes: list[float], sign: int, x: F32) -> U8:
    code = _nearest(magnitudes, np.abs(x.astype(np.float64)))
    return np.where((x < 0) & (code > 0), code | sign, code).astype(np.uint8)


def to_e4m3(x: F32) -> U8:
    """Round to e4m3 codes; zero has no sign."""
    return _signed(_E4M3, 0x80, x)


def to_e2m1(x: F32) -> U8:
    """Round to e2m1 codes; zero has no sign."""
    return _signed([float(v) for v in _E2M1], 8, x)
