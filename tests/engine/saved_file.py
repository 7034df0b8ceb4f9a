"""Saved sequences taken apart: where their tiles lie, and a right checksum after a change."""

import struct

from pykvq.capacity import tile_bits

MASK = (1 << 64) - 1
PRIME = 0x100000001B3
HEADER_BYTES, LAYER_BYTES = 96, 40  # save.c's header and codec_entry


def with_checksum(data: bytes) -> bytes:
    """The file with the checksum that its bytes now have (base/hash.h)."""
    body = data[:-8]
    words = struct.unpack(f"<{len(body) // 8 + 1}Q", body + bytes(8 - len(body) % 8))
    value = 0xCBF29CE484222325
    for word in words:
        value = ((value ^ word) * PRIME) & MASK
        value ^= value >> 32
    return body + struct.pack("<Q", value)


def last_byte_of_tile(data: bytes, kv: str, side: str) -> int:
    """Of the first encoded tile of the first layer's first head, in a file of a model without sliding windows."""
    n_layer, n_head_kv, head_dim, n_tokens, n_cached = struct.unpack_from("<5I", data, 32)
    n_tiles = -(-n_cached // 64)
    forms = HEADER_BYTES + n_layer * LAYER_BYTES + 4 * n_tokens
    n_sink = data[forms : forms + n_tiles].index(1)
    at = forms + n_tiles + n_sink * n_layer * n_head_kv * 2 * 64 * head_dim * 2
    n_bytes = {side: round(tile_bits(kv, side, head_dim) * 64 * head_dim / 8) for side in "kv"}
    return at + n_bytes["k"] - 1 if side == "k" else at + -(-n_bytes["k"] // 64) * 64 + n_bytes["v"] - 1
