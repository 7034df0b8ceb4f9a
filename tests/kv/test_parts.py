"""The pieces of the codecs: the rotation, the order of codes, the codebooks, the small floats."""

import numpy as np
import pytest
from tiles import HEAD_DIMS, TILE, encode, gaussian

from pykvq.ref import pack, small_floats, tile, turbo

every_head_dim = pytest.mark.parametrize("head_dim", HEAD_DIMS)


@every_head_dim
def test_rotation_is_orthonormal(head_dim):
    matrix = tile.rotate_back(np.eye(head_dim)).T
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(head_dim), atol=1e-14)
    x = gaussian(head_dim)
    rotated = tile.rotate(x)
    np.testing.assert_allclose(rotated, x.astype(np.float64) @ matrix, atol=1e-6)
    np.testing.assert_allclose(tile.rotate_back(rotated.astype(np.float64)), x, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=1), np.linalg.norm(x, axis=1), rtol=1e-6)


def test_rotation_blocks_and_signs():
    """Pinned: saved sequences depend on them."""
    assert [tile.rotate_block(n) for n in HEAD_DIMS] == [64, 16, 32, 128, 256]
    words = np.packbits(tile.rotate_signs(256) < 0, bitorder="little").view(np.uint32)
    pinned = "7f4dd192 00276c8d 90796048 8a943fc1 9b101c2f 679c55c9 b1044aa2 c6f4312a"
    assert " ".join(f"{word:08x}" for word in words) == pinned


@every_head_dim
def test_rotation_spreads_an_outlier_channel(head_dim):
    x = np.zeros((TILE, head_dim), np.float32)
    x[:, 7] = 100
    np.testing.assert_allclose(np.abs(tile.rotate(x)).max(), 100 / np.sqrt(tile.rotate_block(head_dim)), rtol=1e-6)


@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@every_head_dim
def test_packing_is_a_bijection(side, bits, head_dim):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (TILE, head_dim), np.uint8)
    packed = pack.pack(side, bits, codes)
    assert len(packed) == TILE * head_dim * bits // 8
    unpacked = pack.unpack(side, bits, head_dim, tile.Parts(np.frombuffer(packed, np.uint8)))
    np.testing.assert_array_equal(unpacked, codes)
    # and onto: any bytes are the packing of some codes
    noise = np.random.default_rng(1).bytes(len(packed))
    codes = pack.unpack(side, bits, head_dim, tile.Parts(np.frombuffer(noise, np.uint8)))
    assert pack.pack(side, bits, codes) == noise


@pytest.mark.parametrize("side", ["k", "v"])
@every_head_dim
def test_a_code_lies_where_kernels_look(side, head_dim):
    """The index formula of kv/pack.h, against the packing of one code at a time."""
    rng = np.random.default_rng(head_dim)
    for t, d in zip(rng.integers(0, TILE, 50), rng.integers(0, head_dim, 50), strict=True):
        if side == "k":
            vector, lane, byte = d // 4 * 4 + t // 16, t % 16, d % 4
        else:
            vector, lane, byte = d // 16 * 16 + t // 4, d % 16, t % 4
        for bits in (1, 2, 4, 8):
            codes = np.zeros((TILE, head_dim), np.uint8)
            codes[t, d] = 1
            packed = np.frombuffer(pack.pack(side, bits, codes), np.uint8)
            fields = 8 // bits
            (place,) = np.flatnonzero(packed)
            assert place == vector // fields * 64 + lane * 4 + byte
            assert packed[place] == 1 << (vector % fields) * bits


@pytest.mark.parametrize(("kv_type", "bits"), [("kivi2", 2), ("kvarn3", 3), ("kivi4", 4), ("q8_0", 8)])
@pytest.mark.parametrize("side", ["k", "v"])
def test_library_packs_as_the_oracle(kv_type, bits, side):
    """Random codes reach the library's packing through a codec; the oracle's unpacking must find them in its bytes."""
    x = gaussian(96)
    got, n_bytes = encode(kv_type, side, x), TILE * 96 * bits // 8
    codes = pack.unpack(side, bits, 96, tile.Parts(np.frombuffer(got, np.uint8)))
    assert pack.pack(side, bits, codes) == got[:n_bytes]
    assert len(np.unique(codes)) > 2 ** (bits - 1)


@pytest.mark.parametrize(("bits", "error"), [(2, 0.117482), (3, 0.034548), (4, 0.009501)])
def test_codebooks_are_lloyd_max(bits, error):
    """The published distortion for a normal distribution, and each centroid the mean of what falls to it."""
    centroids = turbo.CENTROIDS[bits].astype(np.float64)
    np.testing.assert_allclose(centroids, -centroids[::-1])
    x = np.linspace(-9, 9, 2_000_001)
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    nearest = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, x)
    assert round(float((density * (x - centroids[nearest]) ** 2).sum()), 6) == error
    means = np.bincount(nearest, density * x) / np.bincount(nearest, density)
    np.testing.assert_allclose(means, centroids, atol=1e-5)
    assert round(float(turbo.CENTROIDS[4][-1]) / np.sqrt(128), 4) == 0.2415  # a widely copied table had 0.1739


def test_small_floats():
    assert small_floats.E4M3[0x7E] == 448 and small_floats.E4M3[1] == 2.0**-9 and small_floats.E4M3[0xB8] == -1
    assert list(small_floats.E2M1[:8]) == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    finite = [c for c in range(256) if c & 0x7F != 0x7F and c != 0x80]
    codes = small_floats.to_e4m3(small_floats.E4M3[finite].astype(np.float32))
    assert list(codes) == finite
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 7, -5, -0.1], np.float32)
    assert list(small_floats.to_e2m1(ties)) == [0, 2, 2, 4, 4, 6, 6, 7, 14, 0]
