"""Uniform codes with a scale and a zero, fitted column by column: x ~ scale * code + zero.

Start from the smallest and largest element (the rule of KIVI's paper); then three times fit scale and zero to the codes
by least squares and round again; then, with the codes as they are, correct the scale that least squares has shrunk:
'norm' keeps the variance of the column, 'unbiased' makes the regression of the column on its reconstruction have slope
1.
"""

import numpy as np

from pykvq.ref.tile import F16, F32, F64, U8, half, reciprocal, total


def _round(x: F32, scale: F32, zero: F32, n_steps: int) -> tuple[F32, F32]:
    y = x - zero
    return y, np.round(np.clip(y * reciprocal(scale), np.float32(0), np.float32(n_steps)))


def _refit(y: F32, q: F32, scale: F32, zero: F32, rule: str) -> tuple[F32, F32]:
    n = np.float32(len(y))
    sum_y, sum_q = total(y, 0), total(q, 0)
    var_q = total(q * q, 0) - sum_q * sum_q / n
    var_y = total(y * y, 0) - sum_y * sum_y / n
    cov = total(y * q, 0) - sum_y * sum_q / n
    fits = (var_q > 0) & (var_y > 0) & (cov > 0)
    var_q, var_y, cov = (np.where(fits, v, np.float32(1)) for v in (var_q, var_y, cov))
    new = {"least squares": cov / var_q, "norm": np.sqrt(var_y / var_q), "unbiased": var_y / cov}[rule]
    new = half(new).astype(np.float32)
    new_zero = half(zero + (sum_y - new * sum_q) / n).astype(np.float32)
    return np.where(fits, new, scale), np.where(fits, new_zero, zero)


def encode(x: F32, bits: int, rule: str) -> tuple[U8, F16, F16]:
    """Fit the columns of x (n_rows, n_cols): codes (n_rows, n_cols), scale and zero (n_cols)."""
    n_steps = 2**bits - 1
    low, high = x.min(axis=0), x.max(axis=0)
    scale = half((high - low) / np.float32(n_steps)).astype(np.float32)
    zero = half(low).astype(np.float32)
    y, q = _round(x, scale, zero, n_steps)
    for _ in range(3):
        scale, zero = _refit(y, q, scale, zero, "least squares")
        y, q = _round(x, scale, zero, n_steps)
    scale, zero = _refit(y, q, scale, zero, rule)
    return q.astype(np.uint8), half(scale), half(zero)


def decode(codes: U8, scale: F64, zero: F64) -> F64:
    """Give scale * code + zero, columns as in encode."""
    return scale * codes + zero
