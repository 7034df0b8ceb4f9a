"""`pykvq models`: the models that are known by name."""

from __future__ import annotations

from . import options
from .common import mib

EXAMPLES = """
pykvq models  # names, sizes, and which are here
pykvq models --json
"""


def models(json: options.Json = False, debug: options.Debug = False) -> None:
    """List the models that can be used by name."""
    from ..registry import entries

    if json:
        from dataclasses import asdict
        from json import dumps

        print(dumps([asdict(e) | {"path": str(e.path), "cached": e.is_cached} for e in entries().values()]))
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "model", "licence", "size", "here"):
        table.add_column(column, no_wrap=True)
    table.add_column("path", overflow="fold")
    for entry in entries().values():
        here = "yes" if entry.is_cached else "no"
        table.add_row(entry.name, entry.title, entry.licence, mib(entry.n_bytes), here, str(entry.path))
    Console().print(table)
