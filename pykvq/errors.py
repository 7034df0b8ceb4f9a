"""The exceptions of pykvq: each carries one sentence that names the object, what is wrong and what was expected."""


class PykvqError(Exception):
    """Base of every error that pykvq raises on purpose."""


class ArgumentError(PykvqError, ValueError):
    """The caller asked for something impossible."""


class FileError(PykvqError, OSError):
    """The operating system refused: missing, no permission, unreadable, disk full, no network."""


class FormatError(PykvqError, ValueError):
    """The bytes of a file are not what they should be."""


class UnsupportedError(PykvqError):
    """Well formed, but not something this build can run."""


class OutOfMemoryError(PykvqError, MemoryError):
    """Host or device memory ran out."""


class FullError(PykvqError):
    """A context or the page pool is full."""


class BusyError(PykvqError):
    """C API: another thread is using the engine. `Engine` makes threads wait instead."""


class CancelledError(PykvqError):
    """The step ended because `Engine.cancel` was called."""


class DeviceError(PykvqError):
    """The device failed; the engine is dead."""


class NumericError(PykvqError):
    """Logits are not finite."""
