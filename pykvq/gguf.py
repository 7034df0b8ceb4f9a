"""GGUF files: their metadata and tensor table, without loading a model."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ._ffi import check, ffi, lib, path_bytes
from .errors import ArgumentError

if TYPE_CHECKING:
    from .model import Model

Scalar: TypeAlias = int | float | bool | str
Value: TypeAlias = Scalar | list[Scalar]

# GGUF value type -> struct format of one element
_FORMATS: dict[int, str] = {
    lib.PYKVQ_GGUF_U8: "B",
    lib.PYKVQ_GGUF_I8: "b",
    lib.PYKVQ_GGUF_U16: "H",
    lib.PYKVQ_GGUF_I16: "h",
    lib.PYKVQ_GGUF_U32: "I",
    lib.PYKVQ_GGUF_I32: "i",
    lib.PYKVQ_GGUF_F32: "f",
    lib.PYKVQ_GGUF_BOOL: "?",
    lib.PYKVQ_GGUF_U64: "Q",
    lib.PYKVQ_GGUF_I64: "q",
    lib.PYKVQ_GGUF_F64: "d",
}


class Tensor(NamedTuple):
    """A row of the tensor table."""

    name: str
    type: str  # "Q4_K"
    shape: tuple[int, ...]  # slowest dimension first, as in numpy: a weight matrix is (n_out, n_in)
    n_bytes: int


class Metadata(Mapping[str, Value]):
    """The key-value pairs of a file; a value is decoded when it is first asked for."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._index: dict[str, int] = {}
        self._decoded: dict[str, Value] = {}
        raw = ffi.new("pykvq_gguf_value *")
        for i in range(lib.pykvq_gguf_n_values(file.handle)):
            check(lib.pykvq_gguf_value_at(file.handle, i, raw))
            self._index[_utf8(raw.key, raw.n_key)] = i

    def __getitem__(self, key: str) -> Value:
        if key not in self._decoded:
            raw = ffi.new("pykvq_gguf_value *")
            check(lib.pykvq_gguf_value_at(self._file.handle, self._index[key], raw))
            self._decoded[key] = _decode(raw)
        return self._decoded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


class GGUFFile:
    """An open GGUF file, or sharded set of files. A context manager; closing twice is fine.

    Attributes:
        metadata: key -> int, float, bool, str or a list of them. Strings are UTF-8; bytes that are not become lone
            surrogates ("surrogateescape"), so nothing is lost.
        tensors: the tensor table in file order.
        n_bytes: size of the mapped files.
    """

    _handle: Any = None

    def __init__(self, handle: Any, path: str, model: Model | None = None) -> None:
        self._handle = handle
        self._model = model  # whose handle it is; None: this object's own
        self.path = path
        self.metadata = Metadata(self)
        self.tensors = _tensors(handle)
        self.n_bytes = int(lib.pykvq_gguf_n_bytes(handle))
        self.version = int(lib.pykvq_gguf_version(handle))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GGUFFile:
        """Map and check a file; for a sharded set, its first file.

        Raises:
            FileError: the file cannot be opened or read.
            FormatError: it is not a sound GGUF file.
        """
        out = ffi.new("pykvq_gguf **")
        check(lib.pykvq_gguf_open(path_bytes(path), out))
        return cls(out[0], os.fspath(path))

    @property
    def handle(self) -> Any:
        """The C object."""
        if self._model is not None:
            return lib.pykvq_model_gguf(self._model.handle)
        if self._handle is None:
            raise ArgumentError(f"{self.path}: the file is closed")
        return self._handle

    def close(self) -> None:
        """Unmap the file. Values decoded so far stay readable."""
        handle, self._handle = self._handle, None
        if handle is not None and self._model is None:
            lib.pykvq_gguf_close(handle)

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GGUFFile {self.path!r}: {len(self.metadata)} values, {len(self.tensors)} tensors>"


def _utf8(data: Any, n_bytes: int) -> str:
    return bytes(ffi.buffer(data, n_bytes)).decode("utf-8", "surrogateescape")


def _decode(raw: Any) -> Value:
    """A pykvq_gguf_value as a Python value."""
    values = _strings(raw) if raw.type == lib.PYKVQ_GGUF_STRING else _numbers(raw)
    return values if raw.is_array else values[0]


def _numbers(raw: Any) -> list[Scalar]:
    data = bytes(ffi.buffer(raw.data, raw.n_data_bytes)) if raw.n else b""
    return list(struct.unpack(f"<{raw.n}{_FORMATS[raw.type]}", data))


def _strings(raw: Any) -> list[Scalar]:
    n = int(raw.n)
    offsets, lengths = ffi.new("uint64_t[]", n), ffi.new("uint64_t[]", n)
    check(lib.pykvq_gguf_strings(raw, offsets, lengths))
    data = bytes(ffi.buffer(raw.data, raw.n_data_bytes)) if n else b""
    return [
        data[begin : begin + length].decode("utf-8", "surrogateescape")
        for begin, length in zip(ffi.unpack(offsets, n), ffi.unpack(lengths, n), strict=True)
    ]


def _weight_type_names() -> dict[int, str]:
    names: dict[int, str] = {}
    raw = ffi.new("pykvq_weight_type *")
    for i in range(lib.pykvq_n_weight_types()):
        check(lib.pykvq_weight_type_at(i, raw))
        names[int(raw.id)] = ffi.string(raw.name).decode()
    return names


def _tensors(handle: Any) -> list[Tensor]:
    names = _weight_type_names()
    raw = ffi.new("pykvq_gguf_tensor *")
    tensors: list[Tensor] = []
    for i in range(lib.pykvq_gguf_n_tensors(handle)):
        check(lib.pykvq_gguf_tensor_at(handle, i, raw))
        shape = tuple(int(raw.ne[d]) for d in reversed(range(raw.n_dims)))
        type_name = names.get(int(raw.type), f"type {raw.type}")
        tensors.append(Tensor(_utf8(raw.name, raw.n_name), type_name, shape, int(raw.n_bytes)))
    return tensors
