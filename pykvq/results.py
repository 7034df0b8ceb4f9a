"""Rows of measurements: where they come from, the file that keeps them, tables of them."""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from ._ffi import lib, text
from .errors import FileError, FormatError

Row: TypeAlias = dict[str, Any]  # one line of a result file
Columns: TypeAlias = Mapping[str, Callable[[Row], str]]  # heading -> cell


def origin(model_path: str | None) -> Row:
    """What a row was measured with, and with which model, if any: a figure without it cannot be reproduced."""
    model = Path(model_path) if model_path else None
    return {
        "command": _command(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "isa": text(lib.pykvq_cpu_isa()),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.system(),
        },
        **({"model": {"file": model.name, "sha256": _sha256(model)}} if model else {}),
        "versions": {"pykvq": text(lib.pykvq_version()), "numpy": np.__version__, "python": platform.python_version()},
    }


def _command() -> str:
    """The command line; of paths only the last part."""
    program = "pykvq" if sys.argv[0].endswith("__main__.py") else sys.argv[0]
    return " ".join(Path(part).name if "/" in part else part for part in (program, *sys.argv[1:]))


def _commit() -> str | None:
    """Of the checkout that this package runs from, marked if it has changes; None: it is installed."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


class ResultFile:
    """A file of JSON lines that grows by whole rows, so that an interrupted sweep goes on where it ended.

    A last line without its end, as a crash leaves it, is dropped.
    """

    def __init__(self, path: Path | None) -> None:
        """Read what is there; None keeps rows in memory only."""
        self._path = path
        self.rows: list[Row] = []
        if path is not None and path.exists():
            self.rows = read_rows(path)

    @property
    def kept(self) -> str:
        """In words: what happens to rows."""
        return "are lost: --save keeps them" if self._path is None else f"are kept in {self._path}"

    def find(self, key: Mapping[str, Any]) -> Row | None:
        """The newest row without an error that has these values."""
        return next((row for row in reversed(self.rows) if self.matches(row, key)), None)

    @staticmethod
    def matches(row: Row, key: Mapping[str, Any]) -> bool:
        """Has a row these values, and no error?"""
        key = json.loads(json.dumps(key))  # as they come back from a file
        return "error" not in row and all(json.loads(json.dumps(row.get(name))) == value for name, value in key.items())

    def append(self, row: Row) -> None:
        """Keep a row, for good."""
        self.rows.append(row)
        if self._path is None:
            return
        try:
            with self._path.open("r+b" if self._path.exists() else "w+b") as file:
                data = file.read()
                file.seek(data.rfind(b"\n") + 1)
                file.truncate()
                file.write(json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise FileError(f"{self._path}: {error.strerror}") from error


def read_rows(path: Path) -> list[Row]:
    """The rows of a result file: JSON lines, or in a .json file an object whose `rows` share its other members.

    Raises:
        FileError: it cannot be read.
        FormatError: a line is not a JSON object.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    if path.suffix == ".json":
        return _rows_of_object(data, path)
    lines = data.split(b"\n")[:-1]
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise FormatError(f"{path}: line {number} is not a JSON object")
        rows.append(cast(Row, row))
    return rows


def _rows_of_object(data: bytes, path: Path) -> list[Row]:
    try:
        told = cast(Row, json.loads(data))
        shared = {name: value for name, value in told.items() if name != "rows"}
        return [{**shared, **row} for row in cast("list[Row]", told["rows"])]
    except (ValueError, AttributeError, KeyError, TypeError):
        raise FormatError(f"{path}: not a JSON object with rows") from None


def cells(columns: Columns, rows: Iterable[Row]) -> list[list[str]]:
    """A heading and a line per row."""
    return [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table for people; columns of figures are flush right."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    right = [all(line[i][:1] in "-+.0123456789" for line in table[1:]) for i in range(len(table[0]))]

    def line(values: Sequence[str]) -> str:
        padded = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    return "\n".join([line(table[0]), rule, *map(line, table[1:])])


def comma_separated(rows: Sequence[Row]) -> str:
    """All fields of all rows as CSV; what is nested gets names with dots."""
    flat = [_flatten(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flatten(row: Row, prefix: str = "") -> Row:
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flatten(cast(Row, value), f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return flat
