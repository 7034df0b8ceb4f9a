"""Where engines can run on this machine."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from ._ffi import check, ffi, lib, text
from .errors import PykvqError, UnsupportedError

_NO_LIMIT = 1 << 60  # bytes; version 1 of cgroups says a number for "none"


class Memory(NamedTuple):
    """Bytes of a device's memory."""

    n_free: int  # of the CPU: what the system calls available, at most the limit
    n_total: int
    n_limit: int | None  # what the cgroup of this process allows; None: all


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


def memory(device: str) -> Memory:
    """The memory of "cpu", of the GPU of "cuda", or of the one that "auto" takes.

    Raises:
        UnsupportedError: the device cannot be used, or does not tell.
    """
    if device == "cuda" or (device == "auto" and device_problem("cuda") is None):
        raw = ffi.new("uint64_t[2]")
        check(lib.pykvq_device_memory(b"cuda", raw, raw + 1))
        return Memory(int(raw[0]), int(raw[1]), None)
    try:
        lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
        fields = {words[0]: int(words[1]) * 1024 for words in lines}
        n_total, n_free = fields["MemTotal:"], fields["MemAvailable:"]
    except (OSError, ValueError, IndexError, KeyError):
        raise UnsupportedError("memory of this machine: unknown, /proc/meminfo does not tell") from None
    limit = _cgroup_limit()
    return Memory(n_free if limit is None else min(n_free, limit), n_total, limit)


def _cgroup_limit() -> int | None:
    """Of version 2 or 1."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(path).read_text())
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
        return limit if limit < _NO_LIMIT else None
    return None
