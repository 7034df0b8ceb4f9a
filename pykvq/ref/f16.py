"""f16: half floats. K (head_dim, 64), channel by channel; V (64, head_dim), token by token."""

from pykvq.ref.tile import F32, F64, TILE, U8, Codec, Parts


def _encode_k(x: F32) -> bytes:
    return x.T.astype("<f2").tobytes()


def _decode_k(tile: U8, head_dim: int) -> F64:
    return Parts(tile).halfs(head_dim, TILE).T


def _encode_v(x: F32) -> bytes:
    return x.astype("<f2").tobytes()


def _decode_v(tile: U8, head_dim: int) -> F64:
    return Parts(tile).halfs(TILE, head_dim)


CODECS = (Codec(_encode_k, _decode_k), Codec(_encode_v, _decode_v))
