"""The only importer of the compiled module: its two objects, and statuses turned into exceptions."""

from __future__ import annotations

import os
from typing import Any

from . import errors
from ._native import ffi, lib

ABI = 1  # the PYKVQ_ABI that the Python files were written against

if lib.pykvq_abi() != ABI:
    raise ImportError(
        f"pykvq: the compiled module has ABI {lib.pykvq_abi()}, these Python files need {ABI}; reinstall pykvq"
    )

_EXCEPTIONS: dict[int, type[errors.PykvqError]] = {
    lib.PYKVQ_E_ARGUMENT: errors.ArgumentError,
    lib.PYKVQ_E_FILE: errors.FileError,
    lib.PYKVQ_E_FORMAT: errors.FormatError,
    lib.PYKVQ_E_UNSUPPORTED: errors.UnsupportedError,
    lib.PYKVQ_E_MEMORY: errors.OutOfMemoryError,
    lib.PYKVQ_E_FULL: errors.FullError,
    lib.PYKVQ_E_BUSY: errors.BusyError,
    lib.PYKVQ_E_CANCELLED: errors.CancelledError,
    lib.PYKVQ_E_DEVICE: errors.DeviceError,
    lib.PYKVQ_E_NUMERIC: errors.NumericError,
}


def check(status: int) -> None:
    """Raise the exception of a pykvq_status, with this thread's last sentence."""
    if status != lib.PYKVQ_OK:
        raise _EXCEPTIONS[status](text(lib.pykvq_last_error()))


def text(chars: Any) -> str:
    """A NUL-terminated UTF-8 string of the library."""
    return ffi.string(chars).decode("utf-8", "replace")


def path_bytes(path: str | os.PathLike[str]) -> bytes:
    """A path as the library takes it."""
    name = os.fsencode(path)
    if not name or b"\0" in name:
        raise errors.ArgumentError(f"{os.fspath(path)!r}: not a file name")
    return name


__all__ = ["check", "ffi", "lib", "path_bytes", "text"]
