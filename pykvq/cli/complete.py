"""What the shell offers after Tab. Nothing here may fail: a shell has no place for a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

Found = list[tuple[str, str]]  # what may stand there, and a word about it

DEVICES = {"cpu": "this machine's cores", "cuda": "an NVIDIA GPU", "auto": "cuda where it runs, else cpu"}


def models(incomplete: str) -> Found:
    """Names of known models, GGUF files, and the folders on the way to some."""
    from ..registry import entries

    found = [(entry.name, entry.title) for entry in entries().values() if entry.name.startswith(incomplete)]
    with suppress(OSError):
        found += [(path, "") for path in _files(incomplete)]
    return found


def names(incomplete: str) -> Found:
    """Names of known models."""
    from ..registry import entries

    return [(entry.name, entry.title) for entry in entries().values() if entry.name.startswith(incomplete)]


def kv_types(incomplete: str) -> Found:
    """KV types, and behind a slash those of the values."""
    from ..kv import kv_types as all_types

    before, slash, _ = incomplete.rpartition("/")
    found = ((f"{before}{slash}{kv.name}", kv.summary) for kv in all_types())
    return [(name, summary) for name, summary in found if name.startswith(incomplete)]


def kv_type_lists(incomplete: str) -> Found:
    """Lists of KV types with commas between them."""
    before, comma, last = incomplete.rpartition(",")
    return [(f"{before}{comma}{name}", summary) for name, summary in kv_types(last)]


def devices(incomplete: str) -> Found:
    """Devices."""
    return [(name, about) for name, about in DEVICES.items() if name.startswith(incomplete)]


def settings(incomplete: str) -> Found:
    """Settings of the sampler, with their defaults."""
    from ..sampling import SETTINGS

    return [(f"{name}=", f"default {value}") for name, value in SETTINGS.items() if name.startswith(incomplete)]


def templates(incomplete: str) -> Found:
    """Built-in chat templates."""
    from ..fallback_templates import FALLBACKS

    return [(name, "built in") for name in FALLBACKS if name.startswith(incomplete)]


def _files(incomplete: str) -> Iterator[str]:
    folder, slash, begin = incomplete.rpartition("/")
    for path in sorted(Path(f"{folder}{slash}" or ".").expanduser().iterdir()):
        if not path.name.startswith(begin) or (path.name.startswith(".") and not begin):
            continue
        if path.is_dir():
            yield f"{folder}{slash}{path.name}/"
        elif path.suffix == ".gguf":
            yield f"{folder}{slash}{path.name}"
