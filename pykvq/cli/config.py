"""The file of defaults: flags that the user would otherwise type each time.

threads = 4             # for every verb that has the flag
kv = "kivi4"            # for the verbs that answer; those that compare KV types go on comparing all

[chat]                  # for one verb
system = "Be brief."
kv-tail = 128
"""

from __future__ import annotations

import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import typer

from ..errors import FileError, FormatError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_COMPARE = ("eval", "bench", "plan")  # their --kv is a list of what to compare
_NEVER = ("help", "debug")  # flags that are no defaults
_applied: dict[str, Any] = {}  # what the file has set for the verb that runs


def path() -> Path:
    """Where the file is, or would be: $PYKVQ_CONFIG, or pykvq/config.toml in the user's configuration folder."""
    if file := os.environ.get("PYKVQ_CONFIG"):
        return Path(file)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pykvq" / "config.toml"


def defaults(context: typer.Context, verb: str) -> dict[str, Any]:
    """The defaults of a verb, by parameter. The whole file is checked, whatever the verb is.

    Raises:
        FileError: the file cannot be read, or $PYKVQ_CONFIG names none.
        FormatError: it is not TOML, a key is no verb's flag, or a value is nothing that the flag takes.
    """
    file = path()
    text = _read(file)
    if text is None:
        return {}
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{file}: {error}") from None
    flags = {name: _flags(context, name) for name in cast(Any, context.command).commands}
    found: dict[str, dict[str, Any]] = {name: {} for name in flags}
    for key, value in tables.items():
        if isinstance(value, dict) and key in flags:
            for inner, item in cast("dict[str, Any]", value).items():
                where = _Place(file, text, inner, key)
                found[key] |= _checked(context, where, item, flags[key])
        elif isinstance(value, dict):
            raise FormatError(f"{_Place(file, text, key)}no such verb{_meant(key, flags)}")
        else:
            where = _Place(file, text, key)
            every = {name: flag for verb in flags.values() for name, flag in verb.items()}
            for name, default in _checked(context, where, value, every).items():
                for other in flags:
                    if name in flags[other] and not (name == "kv" and other in _COMPARE):
                        found[other] = {name: default} | found[other]
    _applied.update(found[verb])
    return found[verb]


def blame(sentence: str) -> str:
    """An error, and the file if it is about a value that the file has set."""
    keys = [name.replace("_", "-") for name, value in _applied.items() if f"'{value}'" in sentence]
    return f"{sentence} ({path()} sets {', '.join(keys)})" if keys else sentence


class _Place:
    """Where a key stands, for sentences."""

    def __init__(self, file: Path, text: str, key: str, table: str = "") -> None:
        self.key = key
        self._head = f"{file}:{_line_number(text, key, table)}: {f'[{table}] ' if table else ''}{key}: "

    def __str__(self) -> str:
        return self._head


def _read(file: Path) -> str | None:
    try:
        return file.read_text("utf-8")
    except FileNotFoundError:
        if "PYKVQ_CONFIG" in os.environ:
            raise FileError(f"{file}: no such file; $PYKVQ_CONFIG names it") from None
        return None
    except OSError as error:
        raise FileError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{file}: not UTF-8 text, byte {error.start} is 0x{error.object[error.start]:02x}") from None


def _flags(context: typer.Context, verb: str) -> dict[str, Any]:
    """The flags of a verb, by parameter."""
    params = cast(Any, context.command).commands[verb].params
    return {param.name: param for param in params if param.param_type_name == "option" and param.name not in _NEVER}


def _checked(context: typer.Context, where: _Place, value: Any, flags: dict[str, Any]) -> dict[str, Any]:
    """One default, as the flag takes it."""
    name = where.key.replace("-", "_")
    if name not in flags:
        raise FormatError(f"{where}no such flag{_meant(name, flags)}")
    flag = flags[name]
    if flag.is_flag != isinstance(value, bool):
        raise FormatError(f"{where}{value!r}, expected {'true or false' if flag.is_flag else 'a value'}")
    if isinstance(value, list) != flag.multiple:
        raise FormatError(f"{where}{value!r}, expected {'a list' if flag.multiple else 'one value'}")
    try:
        typed = cast("list[Any]", value) if flag.is_flag or flag.multiple else str(value)
        flag.process_value(context, typed)
    except typer.BadParameter as error:
        raise FormatError(f"{where}{value!r}: {error.message}") from None
    return {name: typed}


def _meant(word: str, known: dict[str, Any]) -> str:
    near = get_close_matches(word, known, 1)
    return f"; did you mean {near[0].replace('_', '-')}?" if near else ""


def _line_number(text: str, key: str, table: str) -> int:
    """The line that sets a key, or opens the table of that name; the first line if it is written unusually."""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\]]*?)\s*\]", line):
            current = header[1]
            if current == key and not table:
                return number
        elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return 1
