"""What the codec tests share: the library's encode and decode, and tiles of every kind of data."""

import numpy as np

from pykvq._ffi import check, ffi, lib

TILE = 64
HEAD_DIMS = (64, 80, 96, 128, 256)
KV_TYPES = [
    *("f16", "q8_0", "q4_0", "fp8", "nvfp4", "kivi4", "kivi2", "kivi2_g64"),
    *("turbo4", "turbo3", "turbo2", "turbo3.5", "turbo2.5"),
    *("kvarn4", "kvarn3", "kvarn2", "tier3", "tier2"),
]
SIDES = ("k", "v")


def tile_bytes(kv_type: str, side: str, head_dim: int) -> int:
    n_bytes = ffi.new("uint64_t *")
    check(lib.pykvq_kv_tile_bytes(kv_type.encode(), side.encode(), head_dim, n_bytes))
    return n_bytes[0]


def aligned(n_bytes: int, fill: int) -> np.ndarray:
    """n_bytes of `fill`, 64-byte aligned."""
    memory = np.full(n_bytes + 64, fill, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes]


def encode(kv_type: str, side: str, x: np.ndarray, fill: int = 0xA5) -> bytes:
    """x (64, head_dim) through the library into memory that held `fill`."""
    x = np.ascontiguousarray(x, np.float32)
    tile = aligned(tile_bytes(kv_type, side, x.shape[1]), fill)
    source, target = ffi.cast("float *", x.ctypes.data), ffi.cast("uint8_t *", tile.ctypes.data)
    check(lib.pykvq_kv_encode(kv_type.encode(), side.encode(), x.shape[1], source, target))
    return tile.tobytes()


def decode(kv_type: str, side: str, tile: bytes, head_dim: int) -> np.ndarray:
    source = aligned(len(tile), 0)
    source[:] = np.frombuffer(tile, np.uint8)
    x = np.full((TILE, head_dim), np.nan, np.float32)
    pointers = ffi.cast("uint8_t *", source.ctypes.data), ffi.cast("float *", x.ctypes.data)
    check(lib.pykvq_kv_decode(kv_type.encode(), side.encode(), head_dim, *pointers))
    return x


def gaussian(head_dim: int, seed: int = 0) -> np.ndarray:
    """Normal numbers that are the same everywhere: numpy's frozen generator, on a grid coarser than a libm's errors."""
    x = np.random.RandomState(1000 * seed + head_dim).standard_normal((TILE, head_dim))
    return (np.round(x * 4096) / 4096).astype(np.float32)


def powers_of_two(shape: tuple[int, ...], low: int, high: int, seed: int) -> np.ndarray:
    return np.ldexp(np.float32(1), np.random.RandomState(seed).randint(low, high + 1, shape))


def kinds_of_data(head_dim: int) -> dict[str, np.ndarray]:
    """Tiles a codec must survive, by name."""
    normal = gaussian(head_dim)
    bias = 20 * gaussian(head_dim, seed=1)[:1]
    outlier, sparse = normal.copy(), np.zeros((TILE, head_dim), np.float32)
    outlier[:, [3, head_dim - 5]] *= 30
    uneven = normal * powers_of_two((TILE, 1), -2, 2, 1) * powers_of_two((1, head_dim), -4, 4, 2)
    sparse[10, 3], sparse[11] = 5, 2
    return {
        "gaussian": normal,
        "outlier channels": outlier,
        "uneven tokens and channels": uneven,
        "biased channels": normal * np.float32(0.25) + bias,
        "half floats": normal.astype(np.float16).astype(np.float32),
        "integers": np.round(normal * 2),
        "constant": np.full((TILE, head_dim), 1.7, np.float32),
        "zero": np.zeros((TILE, head_dim), np.float32),
        "negative zero": np.full((TILE, head_dim), -0.0, np.float32),
        "tiny": normal * np.float32(1e-7),
        "denormal": normal * np.float32(1e-40),
        "large": np.clip(normal * 30000, -65504, 65504),
        "sparse": sparse,
    }
