"""kvarn4, kvarn3, kvarn2 (KVarN, arXiv 2606.03458): tokens and channels brought to equal size, then asymmetric codes.

A rotated tile is divided by root mean squares of its channels, then of its tokens, and once more. What the tokens (K)
or the channels (V) were divided by is stored as their factor; the tile divided by the factors gets uniform codes, K per
channel over the tile, V per token over all channels. Tile: codes, scales, zeros, factors, half floats.
"""

from functools import partial

import numpy as np

from pykvq.ref import affine
from pykvq.ref.pack import pack, unpack
from pykvq.ref.tile import F16, F32, F64, TILE, U8, Codec, Parts, half, reciprocal, rotate, rotate_back, total


def normal_factors(y: F32) -> tuple[F16, F16]:
    """Give the factors of tokens and channels."""
    tokens, channels = np.ones((len(y), 1), np.float32), np.ones((1, y.shape[1]), np.float32)
    for _ in range(2):
        for axis, factors in ((0, channels), (1, tokens)):
            mean_square = np.expand_dims(total(y * y, axis), axis) / np.float32(y.shape[axis])
            rms = np.sqrt(mean_square)
            there = reciprocal(rms) != 0
            y = np.where(there, y * reciprocal(rms), y)
            factors *= np.where(there, rms, np.float32(1))
    return half(tokens[:, 0]), half(channels[0])


def divide_tokens(y: F32, factor: F16) -> F32:
    """Divide each token by its factor."""
    return y * reciprocal(factor.astype(np.float32))[:, None]


def refit_tokens(y: F32, fitted: F32, factor: F16) -> F16:
    """Give the factors that bring `fitted` nearest to y, token by token; those with nothing to fit stay."""
    cross, square = total(fitted * y, 1), total(fitted * fitted, 1)
    fits = (cross > 0) & (square > 0)
    return np.where(fits, half(cross / np.where(fits, square, np.float32(1))), factor)


def reconstruct(codes: U8, scale: F16, zero: F16) -> F32:
    """Give scale * code + zero in float32, as the encoder sees it."""
    return scale.astype(np.float32) * codes.astype(np.float32) + zero.astype(np.float32)


def _encode_k(bits: int, x: F32) -> bytes:
    y = rotate(x)
    factor, _ = normal_factors(y)
    codes, scale, zero = affine.encode(divide_tokens(y, factor), bits, "unbiased")
    factor = refit_tokens(y, reconstruct(codes, scale, zero), factor)
    return pack("k", bits, codes) + scale.tobytes() + zero.tobytes() + factor.tobytes()


def _encode_v(bits: int, x: F32) -> bytes:
    y = rotate(x)
    _, factor = normal_factors(y)
    codes, scale, zero = affine.encode(divide_tokens(y.T, factor), bits, "unbiased")
    return pack("v", bits, codes.T) + scale.tobytes() + zero.tobytes() + factor.tobytes()


def _decode_k(bits: int, tile: U8, head_dim: int) -> F64:
    parts = Parts(tile)
    codes = unpack("k", bits, head_dim, parts)
    scale, zero, factor = parts.halfs(head_dim), parts.halfs(head_dim), parts.halfs(TILE)
    return rotate_back(factor[:, None] * affine.decode(codes, scale, zero))


def _decode_v(bits: int, tile: U8, head_dim: int) -> F64:
    parts = Parts(tile)
    codes = unpack("v", bits, head_dim, parts)
    scale, zero, factor = parts.halfs(TILE), parts.halfs(TILE), parts.halfs(head_dim)
    return rotate_back((factor[:, None] * affine.decode(codes.T, scale, zero)).T)


def codecs(bits: int) -> tuple[Codec, Codec]:
    """Give the K and the V codec."""
    return (
        Codec(partial(_encode_k, bits), partial(_decode_k, bits)),
        Codec(partial(_encode_v, bits), partial(_decode_v, bits)),
    )
