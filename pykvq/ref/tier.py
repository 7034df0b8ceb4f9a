"""tier3, tier2 (K): the channels of a tile sorted by variance, those with more of it coded with more bits.

tier2: a quarter of the channels at 4 bits, a quarter at 2, half at 1; tier3: a quarter at 4, half at 3, a quarter at 2.
Not rotated. Tokens have factors as in kvarn.py, channels a scale and a zero. Tile: the codes of the three tiers, each
packed as a K tile of its channels; scales and zeros in the sorted order; factors; the order, one byte per channel.
"""

from functools import partial

import numpy as np

from pykvq.ref import affine
from pykvq.ref.kvarn import divide_tokens, normal_factors, reconstruct, refit_tokens
from pykvq.ref.pack import pack, unpack
from pykvq.ref.tile import F32, F64, TILE, U8, Codec, Parts, total

# bits of the type: (bits, quarters of the channels)
_TIERS = {2: ((4, 1), (2, 1), (1, 2)), 3: ((4, 1), (3, 2), (2, 1))}


def _tiers(bits: int, head_dim: int) -> list[tuple[int, slice]]:
    first, tiers = 0, list[tuple[int, slice]]()
    for tier_bits, quarters in _TIERS[bits]:
        tiers.append((tier_bits, slice(first, first + quarters * head_dim // 4)))
        first += quarters * head_dim // 4
    return tiers


def _variance(x: F32) -> F32:
    centered = x - total(x, 0) / np.float32(TILE)
    return total(centered * centered, 0)


def _encode(bits: int, x: F32) -> bytes:
    factor, _ = normal_factors(x)
    normal = divide_tokens(x, factor)
    order = np.argsort(-_variance(normal), kind="stable")
    packed, scales, zeros, fitted = b"", b"", b"", np.empty_like(x)
    for tier_bits, places in _tiers(bits, x.shape[1]):
        codes, scale, zero = affine.encode(normal[:, order[places]], tier_bits, "norm")
        packed, scales, zeros = packed + pack("k", tier_bits, codes), scales + scale.tobytes(), zeros + zero.tobytes()
        fitted[:, order[places]] = reconstruct(codes, scale, zero)
    factor = refit_tokens(x, fitted, factor)
    return packed + scales + zeros + factor.tobytes() + order.astype(np.uint8).tobytes()


def _decode(bits: int, tile: U8, head_dim: int) -> F64:
    parts, x = Parts(tile), np.empty((TILE, head_dim))
    codes = [unpack("k", tier_bits, places.stop - places.start, parts) for tier_bits, places in _tiers(bits, head_dim)]
    scale, zero, factor = parts.halfs(head_dim), parts.halfs(head_dim), parts.halfs(TILE)
    x[:, parts.bytes(head_dim)] = affine.decode(np.concatenate(codes, axis=1), scale, zero)
    return factor[:, None] * x


def codec(bits: int) -> Codec:
    """Give the K codec."""
    return Codec(partial(_encode, bits), partial(_decode, bits))
