"""Runs `pykvq` as a process of its own."""

import os
import subprocess
import sys
from typing import NamedTuple

COMMAND = [sys.executable, "-m", "pykvq"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


def environment(cache: object = None) -> dict[str, str]:
    """Wide, without colours, and with a cache folder if one is given."""
    changes = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"} | ({"PYKVQ_CACHE": str(cache)} if cache else {})
    return {**os.environ, **changes}


def run(*arguments: object, stdin: bytes = b"", cache: object = None, cwd: object = "/", **variables: str) -> Result:
    """Run it to its end, in a folder where no file can be taken for a model."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        check=False,
        env=environment(cache) | variables,
        cwd=cwd,
        timeout=120,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())
