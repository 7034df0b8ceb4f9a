"""`pykvq doctor`: what of this machine can be used, what not, and why."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, cast

import typer

from . import config, options
from .common import mib

EXAMPLES = """
pykvq doctor
pykvq doctor --json
"""
# What the extras of the package bring
_EXTRAS = {
    "hub": ("huggingface_hub",),
    "convert": ("gguf", "sentencepiece"),
    "grammar": ("llguidance",),
    "plot": ("matplotlib",),
}


class Finding(NamedTuple):
    """One thing that was looked at."""

    name: str
    state: str  # "good", "missing" (something optional), "bad" (pykvq does not work like this)
    text: str
    facts: dict[str, Any]


def doctor(context: typer.Context, json: options.Json = False, debug: options.Debug = False) -> None:
    """Show what pykvq found on this machine and why it does not use the rest. Exit code 0 if models can run."""
    findings = list(_findings(context))
    is_usable = all(finding.state != "bad" for finding in findings)
    if json:
        from json import dumps

        found = {f.name: {"state": f.state, "text": f.text, **f.facts} for f in findings}
        print(dumps({"usable": is_usable} | found))
    else:
        _print(findings)
    if not is_usable:
        raise typer.Exit(1)


def _findings(context: typer.Context) -> Iterator[Finding]:
    yield _program()
    yield _cpu()
    yield _memory()
    yield from _cuda()
    yield from _extras()
    yield _cache()
    yield _config(context)


def _program() -> Finding:
    from .. import __version__

    python = f"Python {platform.python_version()}"
    facts = {"version": __version__, "python": platform.python_version(), "executable": sys.executable}
    return Finding("pykvq", "good", f"{__version__}, {python} ({sys.executable})", facts)


def _cpu() -> Finding:
    from ..device import cpu_isa, n_cores

    isa, n, n_all = cpu_isa(), n_cores(), os.cpu_count() or 1
    text = f"{_cpu_name()}, instruction set {isa}, {n} threads"
    if n < n_all:
        text += f" of {n_all}: this process may not use more (affinity, cgroup)"
    if isa == "scalar":
        text += "; slow: there is neither AVX2 nor NEON with dot products"
    return Finding("cpu", "good", text, {"isa": isa, "n_threads": n, "n_cpus": n_all})


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> Finding:
    from ..device import memory
    from ..errors import UnsupportedError

    try:
        n_free, n_total, limit = memory("cpu")
    except UnsupportedError as error:
        return Finding("memory", "missing", str(error), {})
    text = f"{_gib(n_total)}, {_gib(n_free)} available"
    if limit is not None and limit < n_total:
        text += f"; the cgroup allows {_gib(limit)}"
    return Finding("memory", "good", text, {"n_bytes": n_total, "n_available_bytes": n_free, "n_cgroup_bytes": limit})


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:,.1f} GiB"


def _cuda() -> Iterator[Finding]:
    from .. import __file__ as package
    from ..device import device_problem, load_cublas, memory

    problem = device_problem("cuda")
    library = Path(package).parent / "libpykvq_cuda.so"
    facts: dict[str, Any] = {"library": str(library) if library.exists() else None, "driver": _driver()}
    gpus = list(_gpus())
    if problem is None:
        n_free, n_total, _ = memory("cuda")
        text = f"works: {', '.join(gpus) or 'a GPU'}, {_gib(n_free)} of {_gib(n_total)} free"
        yield Finding("cuda", "good", text, facts | {"gpus": gpus, "n_bytes": n_total, "n_free_bytes": n_free})
        cublas = load_cublas()
        text = cublas or "cuBLASLt not found, prompts run several times slower: pip install 'pykvq[cuda]'"
        yield Finding("cublas", "good" if cublas else "missing", text, {"library": cublas})
        return
    seen = f" (this machine has {', '.join(gpus)})" if gpus else ""
    text = problem.removeprefix("device 'cuda': ")
    if not library.exists():
        text = "this build has no CUDA library; where nvcc is: pip install . -C cmake.define.PYKVQ_CUDA=ON"
    yield Finding("cuda", "missing", f"{text}{seen}", facts | {"gpus": gpus, "problem": problem})


def _driver() -> str | None:
    """The version of NVIDIA's driver, as its kernel module tells it."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def _gpus() -> Iterator[str]:
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        yield from (line.partition(":")[2].strip() for line in lines if line.startswith("Model:"))


def _extras() -> Iterator[Finding]:
    for extra, packages in _EXTRAS.items():
        found = {package: _version(package) for package in packages}
        missing = [package for package, number in found.items() if number is None]
        text = ", ".join(f"{package} {number}" for package, number in found.items() if number)
        if missing:
            text = f"{', '.join(missing)} not installed: pip install 'pykvq[{extra}]'"
        yield Finding(extra, "missing" if missing else "good", text, {"packages": found})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cache() -> Finding:
    from ..registry import cache_folder, entries

    folder = cache_folder()
    models = [entry for entry in entries().values() if entry.is_cached]
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    n_free = shutil.disk_usage(parent).free
    text = (
        f"{folder}: {', '.join(f'{e.name} {mib(e.n_bytes)}' for e in models) or 'no models yet'}; {_gib(n_free)} free"
    )
    is_writable = os.access(parent, os.W_OK)
    facts = {"folder": str(folder), "models": [entry.name for entry in models], "n_free_bytes": n_free}
    return Finding("models", "good" if is_writable else "missing", text if is_writable else f"{text}, read-only", facts)


def _config(context: typer.Context) -> Finding:
    from ..errors import PykvqError

    file = config.path()
    facts = {"path": str(file), "exists": file.exists()}
    try:
        config.defaults(cast(Any, context.parent), "doctor")
    except PykvqError as error:
        return Finding("config", "bad", str(error), facts)
    return Finding("config", "good", f"{file}{'' if file.exists() else ': not there, nothing is set'}", facts)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    marks = {"good": "[green]ok[/]", "missing": "[yellow]--[/]", "bad": "[red]no[/]"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for column in ("state", "name"):
        table.add_column(column, no_wrap=True)
    table.add_column("text", overflow="fold")
    for finding in findings:
        table.add_row(marks[finding.state], finding.name, Text(finding.text))
    Console(highlight=False).print(table)
