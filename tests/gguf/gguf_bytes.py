"""GGUF files written by hand, byte by byte, and read back through the compiled module."""

import struct
from contextlib import contextmanager
from pathlib import Path

from pykvq._native import ffi, lib

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(key: str | bytes, kind: int, data: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + data


def array(key: str, kind: int, n: int, data: bytes) -> bytes:
    return value(key, ARRAY, struct.pack("<IQ", kind, n) + data)


def u32(key: str, x: int) -> bytes:
    return value(key, U32, struct.pack("<I", x))


def tensor(name: str | bytes, ne: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)


def container(
    values: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_values: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts can be made to lie."""
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    n_values = len(values) if n_values is None else n_values
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_values) + b"".join(values) + b"".join(tensors)
    return head + bytes(-len(head) % alignment if tensors else 0) + data


def shard(no: int, count: int, n_tensors: int, tensors: tuple[bytes, ...], data: bytes) -> bytes:
    split = (
        value("split.no", U16, struct.pack("<H", no)),
        value("split.count", U16, struct.pack("<H", count)),
        value("split.tensors.count", I32, struct.pack("<i", n_tensors)),
    )
    return container(split, tensors, data)


def try_open(path: Path) -> tuple[int, str]:
    """Status and sentence; a file that opens is closed again."""
    out = ffi.new("pykvq_gguf **")
    status = lib.pykvq_gguf_open(bytes(path), out)
    if status == lib.PYKVQ_OK:
        lib.pykvq_gguf_close(out[0])
        return status, ""
    assert out[0] == ffi.NULL
    return status, ffi.string(lib.pykvq_last_error()).decode()


@contextmanager
def opened(path: Path):
    """The pykvq_gguf of a file."""
    out = ffi.new("pykvq_gguf **")
    status = lib.pykvq_gguf_open(bytes(path), out)
    assert status == lib.PYKVQ_OK, ffi.string(lib.pykvq_last_error()).decode()
    try:
        yield out[0]
    finally:
        lib.pykvq_gguf_close(out[0])


def read_value(v):
    """A pykvq_gguf_value in Python: a scalar or a list."""
    if v.type == STRING:
        offsets, lengths = ffi.new("uint64_t[]", v.n), ffi.new("uint64_t[]", v.n)
        assert lib.pykvq_gguf_strings(v, offsets, lengths) == lib.PYKVQ_OK
        raw = bytes(ffi.buffer(v.data, v.n_data_bytes))
        elements = [raw[offsets[i] : offsets[i] + lengths[i]].decode() for i in range(v.n)]
    else:
        elements = list(struct.unpack(f"<{v.n}{FORMATS[v.type]}", ffi.buffer(v.data, v.n_data_bytes)))
    return elements if v.is_array else elements[0]


def read_values(gguf) -> dict:
    v, values = ffi.new("pykvq_gguf_value *"), {}
    for i in range(lib.pykvq_gguf_n_values(gguf)):
        assert lib.pykvq_gguf_value_at(gguf, i, v) == lib.PYKVQ_OK
        values[ffi.unpack(v.key, v.n_key).decode()] = read_value(v)
    return values


def read_tensors(gguf) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """Name -> type, dimensions (fastest first), bytes."""
    t, tensors = ffi.new("pykvq_gguf_tensor *"), {}
    for i in range(lib.pykvq_gguf_n_tensors(gguf)):
        assert lib.pykvq_gguf_tensor_at(gguf, i, t) == lib.PYKVQ_OK
        assert list(t.ne)[t.n_dims :] == [1] * (4 - t.n_dims)
        name = ffi.unpack(t.name, t.n_name).decode()
        tensors[name] = (t.type, tuple(t.ne)[: t.n_dims], bytes(ffi.buffer(t.data, t.n_bytes)))
    return tensors
