"""A GGUF file that is written tensor by tensor and appears at its path only when it is complete."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._ffi import ffi
from .errors import FileError, UnsupportedError
from .weights import WeightType

try:
    import gguf
except ImportError as error:
    raise UnsupportedError(
        "gguf: it writes the files and is not installed; run: pip install 'pykvq[convert]'"
    ) from error

_N_VALUES_OFFSET = 16  # of the header: magic, version, number of tensors, number of values
_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT


def check_target(path: Path, *, force: bool) -> None:
    """Refuse a path that cannot become a new file, before hours are spent on what it should hold.

    Raises:
        FileError: it is a folder, its folder is not there, or it exists and force is not given.
    """
    if path.is_dir():
        raise FileError(f"{path}: is a folder, expected a file name")
    if path.exists() and not force:
        raise FileError(f"{path}: exists already; --force replaces it")
    if not path.parent.is_dir():
        raise FileError(f"{path}: cannot be written: No such file or directory")


class GGUFOutput:
    """Collects metadata (`fields`) and a tensor table, then takes the tensors' bytes in that order.

    A context manager. Until it is left without an exception there is only `part`; an exception removes that too.

    Args:
        path: where the file will be.
        architecture: of `general.architecture`; "" for none.
        force: replace a file that is there.

    Raises:
        FileError: the file exists, or the system refuses; also while writing.
    """

    def __init__(self, path: str | os.PathLike[str], architecture: str, *, force: bool = False) -> None:
        self.path = Path(path)
        check_target(self.path, force=force)
        self.part = self.path.with_name(f"{self.path.name}.part")
        self.fields = gguf.GGUFWriter(self.part, architecture)
        self.n_tensor_bytes = 0
        self._copied: list[bytes] = []
        self._file: Any = None

    def copy_value(self, raw: Any) -> None:
        """Take a pykvq_gguf_value over as it is."""
        key = bytes(ffi.buffer(raw.key, raw.n_key))
        kind = struct.pack("<IIQ", 9, raw.type, raw.n) if raw.is_array else struct.pack("<I", raw.type)
        data = bytes(ffi.buffer(raw.data, raw.n_data_bytes)) if raw.n_data_bytes else b""
        self._copied.append(struct.pack("<Q", len(key)) + key + kind + data)

    def add_tensor(self, name: str, shape: Sequence[int], kind: WeightType) -> None:
        """Announce a tensor; shape as in numpy."""
        n_elements = 1
        for n in shape:
            n_elements *= n
        n_bytes = kind.n_bytes(n_elements)
        import numpy as np  # the writer wants a type of numpy's beside the one that counts

        self.fields.add_tensor_info(
            name, list(shape), np.dtype(np.float32), n_bytes, raw_dtype=gguf.GGMLQuantizationType(kind.id)
        )
        self.n_tensor_bytes += _padded(n_bytes)

    def begin(self) -> None:
        """Write all that stands before the tensors' bytes."""
        fields = self.fields
        n_free = shutil.disk_usage(self.path.parent).free
        if n_free < self.n_tensor_bytes:
            raise FileError(f"{self.path}: needs {self.n_tensor_bytes:,} bytes, the disk has {n_free:,} free")
        fields.write_header_to_file()
        fields.write_kv_data_to_file()
        assert fields.fout is not None
        self._file = fields.fout[0]
        n_values = len(fields.kv_data[0]) + len(self._copied)
        self._file.write(b"".join(self._copied))
        self._file.seek(_N_VALUES_OFFSET)
        self._file.write(struct.pack("<Q", n_values))
        self._file.seek(0, os.SEEK_END)
        fields.write_ti_data_to_file()
        self.end_tensor()

    def write(self, data: Any) -> None:
        """Bytes of the current tensor."""
        self._file.write(data)

    def end_tensor(self) -> None:
        """The current tensor is complete."""
        n = self._file.tell()
        self._file.write(bytes(_padded(n) - n))

    def flush(self) -> None:
        """Everything written so far can be read from `part`."""
        self._file.flush()

    def __enter__(self) -> GGUFOutput:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self.fields.close()
                self.part.replace(self.path)
                return
        except OSError as failure:
            error = failure
            raise self._sentence(failure) from failure
        finally:
            if error is not None:
                self._abandon()
        if isinstance(error, OSError) and not isinstance(error, FileError):
            raise self._sentence(error) from error

    def _sentence(self, error: OSError) -> FileError:
        return FileError(f"{self.path}: cannot be written: {error.strerror or error}")

    def _abandon(self) -> None:
        if self.fields.fout is None:
            return  # nothing was created
        try:
            self.fields.close()
        except OSError:  # what is buffered does not fit either
            pass
        finally:
            self.part.unlink(missing_ok=True)


def _padded(n_bytes: int) -> int:
    return (n_bytes + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
