"""Where engines can run on this machine."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

from ._ffi import check, lib, text
from .errors import PykvqError


def cpu_isa() -> str:
    """The instruction set in use: "avx512", "avx2", "neon" or "scalar"."""
    return text(lib.pykvq_cpu_isa())


def n_cores() -> int:
    """Cores that this process may use: by its affinity and the quota of its cgroup."""
    return int(lib.pykvq_cpu_cores())


@cache
def load_cublas() -> str | None:
    """Load NVIDIA's cuBLASLt, so that the CUDA library finds it by its name. Where it is; None: not on this machine.

    Without it prompts run through the kernels for few tokens: the same results, more slowly.
    """
    for package, file in (("nvidia-cublas", "libcublasLt.so.13"), ("nvidia-cublas-cu12", "libcublasLt.so.12")):
        try:
            found = [path for path in distribution(package).files or [] if path.name == file]
        except PackageNotFoundError:
            found = []
        for path in [*(str(path.locate()) for path in found), file]:  # from the wheel, else where the system has it
            try:
                ctypes.CDLL(path)
            except OSError:
                continue
            return path
    return None


def device_problem(device: str) -> str | None:
    """Why engines do not run on "cpu" or "cuda"; None: they do."""
    try:
        check(lib.pykvq_device_check(device.encode()))
    except PykvqError as error:
        return str(error)
    return None
