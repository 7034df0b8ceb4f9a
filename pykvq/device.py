"""Where engines can run on this machine."""

from __future__ import annotations

from ._ffi import check, lib, text
from .errors import PykvqError


def cpu_isa() -> str:
    """The instruction set in use: "avx512", "avx2", "neon" or "scalar"."""
    return text(lib.pykvq_cpu_isa())


def n_cores() -> int:
    """Cores that this process may use: by its affinity and the quota of its cgroup."""
    return int(lib.pykvq_cpu_cores())


def device_problem(device: str) -> str | None:
    """Why engines do not run on "cpu" or "cuda"; None: they do."""
    try:
        check(lib.pykvq_device_check(device.encode()))
    except PykvqError as error:
        return str(error)
    return None
