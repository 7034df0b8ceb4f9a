"""The codecs' bytes against the oracle and the committed ones, what they lose, and what they do with bad numbers."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from tiles import HEAD_DIMS, KV_TYPES, SIDES, TILE, decode, encode, gaussian, kinds_of_data, powers_of_two, tile_bytes

from pykvq import errors, kv_types, ref

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "kv_tiles.json").read_text())
every_codec = pytest.mark.parametrize(("kv_type", "side"), [(t, s) for t in KV_TYPES for s in SIDES])
every_head_dim = pytest.mark.parametrize("head_dim", HEAD_DIMS)


def test_every_type_is_tested():
    assert [t.name for t in kv_types()] == KV_TYPES == list(ref.CODECS)


@every_codec
@every_head_dim
def test_bytes_are_the_oracles(kv_type, side, head_dim):
    for name, x in kinds_of_data(head_dim).items():
        assert encode(kv_type, side, x) == ref.encode(kv_type, side, x), name


@every_codec
def test_bytes_are_the_committed_ones(kv_type, side):
    """tests/golden/kv_tiles.json, written by tests/golden/make_kv_tiles.py: they change only with a codec's version."""
    golden = GOLDEN[f"{kv_type} {side}"]
    assert encode(kv_type, side, kinds_of_data(32)["gaussian"]).hex() == golden["hex 32"]
    for head_dim in HEAD_DIMS:
        tiles = b"".join(encode(kv_type, side, x) for x in kinds_of_data(head_dim).values())
        assert zlib.crc32(tiles) == golden[f"crc32 {head_dim}"]


@pytest.mark.parametrize(("kv_type", "side"), [("tier3", "k"), ("tier2", "k"), ("turbo3.5", "k"), ("turbo2.5", "v")])
def test_tiles_with_channels_out_of_range_are_refused(kv_type, side):
    tile = encode(kv_type, side, gaussian(128))
    with pytest.raises(errors.FormatError, match="not one that can have been encoded"):
        decode(kv_type, side, tile[:-2] + b"\xff\xff", 128)


@every_codec
@every_head_dim
def test_every_byte_is_written(kv_type, side, head_dim):
    x = kinds_of_data(head_dim)["outlier channels"]
    assert encode(kv_type, side, x, fill=0x00) == encode(kv_type, side, x, fill=0xFF)


@every_codec
@every_head_dim
def test_decode_is_what_the_bytes_mean(kv_type, side, head_dim):
    """float32 decoding against the oracle's float64: some roundings of the largest element."""
    for name, x in kinds_of_data(head_dim).items():
        tile = encode(kv_type, side, x)
        exact = ref.decode(kv_type, side, tile, head_dim)
        assert np.isfinite(exact).all(), name
        error = np.abs(decode(kv_type, side, tile, head_dim) - exact).max()
        assert error <= 2e-6 * np.abs(exact).max() + 1e-44, name


def loss(kv_type: str, side: str, x: np.ndarray) -> float:
    """Mean squared error relative to the mean square."""
    y = decode(kv_type, side, encode(kv_type, side, x), x.shape[1])
    return float(np.square(y - x).sum() / np.square(x).sum())


# Relative squared error on a normal distribution, head_dim 128, K and V. Half floats lose 2^-24 of the square, q8_0
# 3e-5, Lloyd-Max codebooks .0095 .0345 .1175 at 4, 3, 2 bits; unbiased values 1 / (1 - that) times as much.
LOSS = {
    "f16": (6e-8, 6e-8),
    "q8_0": (3.0e-5, 3.0e-5),
    "q4_0": (0.0072, 0.0072),
    "fp8": (7.4e-4, 7.4e-4),
    "nvfp4": (0.0067, 0.0067),
    "kivi4": (0.0055, 0.0055),
    "kivi2": (0.105, 0.115),
    "kivi2_g64": (0.118, 0.13),
    "turbo4": (0.0100, 0.0100),
    "turbo3": (0.035, 0.036),
    "turbo2": (0.118, 0.134),
    "turbo3.5": (0.021, 0.021),
    "turbo2.5": (0.074, 0.082),
    "kvarn4": (0.0073, 0.0095),
    "kvarn3": (0.032, 0.038),
    "kvarn2": (0.115, 0.136),
    "tier3": (0.041, 0.038),
    "tier2": (0.195, 0.136),
}


@every_codec
def test_loss_on_a_normal_distribution(kv_type, side):
    x = np.concatenate([gaussian(128, seed) for seed in range(8)]).reshape(8, TILE, 128)
    lost = np.mean([loss(kv_type, side, tile) for tile in x])
    bound = LOSS[kv_type][SIDES.index(side)]
    assert bound / 2 < lost < bound


@pytest.mark.parametrize("kv_type", [t for t in KV_TYPES if t != "f16"])
def test_outlier_channels_do_not_ruin_the_others(kv_type):
    """Two channels 30 times the others: what the error would be if they took the whole scale is 100 times more."""
    x = kinds_of_data(128)["outlier channels"]
    y = decode(kv_type, "k", encode(kv_type, "k", x), 128)
    assert np.square(y - x).sum() / np.square(x).sum() < 1.3 * LOSS[kv_type][0]


def test_tiers_win_where_channels_differ():
    """What tiers are for: the channels of keys differ in size."""
    x = gaussian(128) * powers_of_two((1, 128), -3, 3, seed=1)
    assert loss("tier2", "k", x) < 0.35 * loss("kvarn2", "k", x)


@pytest.mark.parametrize("kv_type", [t for t in KV_TYPES if t not in ("f16", "q8_0", "fp8", "nvfp4")])
def test_values_are_unbiased(kv_type):
    """A token's values projected on what was there have length 1: errors average out, they do not shrink the output."""
    x = np.concatenate([gaussian(128, seed) for seed in range(8)])
    y = np.concatenate([decode(kv_type, "v", encode(kv_type, "v", tile), 128) for tile in x.reshape(8, TILE, 128)])
    slope = (x * y).sum() / np.square(x).sum()
    assert abs(slope - 1) < 0.01


@every_codec
def test_bad_numbers_stay_in_their_tile_as_zeros(kv_type, side):
    x = gaussian(64)
    bad, clean = x.copy(), x.copy()
    for (t, d), value in {(5, 7): np.nan, (6, 0): np.inf, (6, 1): -np.inf, (3, 3): 1e30, (63, 63): -70000}.items():
        bad[t, d], clean[t, d] = value, 0
    tile = encode(kv_type, side, bad)
    assert tile == encode(kv_type, side, clean) == ref.encode(kv_type, side, bad)
    assert np.isfinite(decode(kv_type, side, tile, 64)).all()
    nothing = np.full((TILE, 64), np.nan, np.float32)
    assert (decode(kv_type, side, encode(kv_type, side, nothing), 64) == 0).all()


@pytest.mark.parametrize(("kv_type", "side"), [(t, s) for t in KV_TYPES for s in SIDES if t != "f16"])
@pytest.mark.parametrize("head_dim", [0, 8, 72, 100, 272, 2**31])
def test_head_dim_refused(kv_type, side, head_dim):
    with pytest.raises(errors.UnsupportedError, match=str(head_dim)):
        tile_bytes(kv_type, side, head_dim)


BITS = {
    "q8_0": (8.5, 8.5),
    "q4_0": (4.5, 4.5),
    "fp8": (8.004, 8.004),
    "nvfp4": (4.504, 4.504),
    "kivi4": (5, 5),
    "kivi2": (3, 3),
    "kivi2_g64": (2.5, 2.5),
    "turbo4": (4.125, 4.125),
    "turbo3": (3.125, 3.125),
    "turbo2": (2.125, 2.125),
    "turbo3.5": (3.766, 3.766),
    "turbo2.5": (2.766, 2.766),
    "kvarn4": (4.625, 4.5),
    "kvarn3": (3.625, 3.5),
    "kvarn2": (2.625, 2.5),
    "tier3": (3.75, 3.5),
    "tier2": (2.75, 2.5),
}


@pytest.mark.parametrize("kv_type", BITS)
def test_bits_per_element(kv_type):
    for side, bits in zip(SIDES, BITS[kv_type], strict=True):
        assert round(tile_bytes(kv_type, side, 128) * 8 / (TILE * 128), 3) == bits
