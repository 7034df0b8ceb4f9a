"""Hugging Face checkpoints: configuration files and tensors, read where they lie, one at a time."""

# What checkpoints say in JSON has no types.
# pyright: basic
from __future__ import annotations

import importlib.util
import json
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, FileError, FormatError, UnsupportedError

HUB_PREFIX = "hf:"
_HUB_FILES = ["*.json", "*.jinja", "*.model", "*.safetensors", "README.md"]

Json = dict[str, Any]
Array = npt.NDArray[Any]

# safetensors type -> (GGML type, type of the numpy array that holds its bits)
_TYPES = {"F32": ("F32", np.uint32), "F16": ("F16", np.uint16), "BF16": ("BF16", np.uint16)}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint."""

    name: str
    type: str  # GGML's name: F32, F16 or BF16
    shape: tuple[int, ...]
    read: Callable[[], Array]  # the bits, as an array of `shape`


@dataclass
class Checkpoint:
    """A folder: `config` is config.json, `tensors` by name in the order of the files."""

    folder: Path
    config: Json
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the configuration and the tables of all tensors; every offset is checked.

        Raises:
            FileError: a file is missing or cannot be read.
            FormatError: a file is damaged or truncated.
            UnsupportedError: a tensor's type cannot be converted.
        """
        if not folder.is_dir():
            raise FileError(f"{folder}: no such folder; expected one with config.json and *.safetensors")
        config = read_json(folder / "config.json")
        checkpoint = cls(folder, config)
        for path in _tensor_files(folder):
            tensors = _bin_tensors(path) if path.suffix == ".bin" else _safetensors(path)
            checkpoint.tensors.update(tensors)
        return checkpoint

    def optional(self, name: str) -> Json:
        """The content of a JSON file, {} if there is none."""
        path = self.folder / name
        return read_json(path) if path.exists() else {}


def locate(source: str) -> Path:
    """The folder of a checkpoint; `hf:owner/repo` is fetched through huggingface_hub into its cache."""
    if not source.startswith(HUB_PREFIX):
        return Path(source)
    repo = source.removeprefix(HUB_PREFIX)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ArgumentError(f"{source}: expected hf:owner/repo")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UnsupportedError(f"{source}: huggingface_hub fetches it and is not installed; pip install 'pykvq[hub]'")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=_HUB_FILES))
    except Exception as error:  # it raises many kinds: its own, the HTTP library's, the system's
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise FileError(f"{source}: the download failed: {reason}") from error


def read_json(path: Path) -> Json:
    """A JSON file that holds an object."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise FormatError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected a JSON object")
    return cast(Json, value)


def _tensor_files(folder: Path) -> list[Path]:
    """The files that hold the weights: safetensors if there are any, else PyTorch's."""
    for stem, suffix in ("model", "safetensors"), ("pytorch_model", "bin"):
        index, single = folder / f"{stem}.{suffix}.index.json", folder / f"{stem}.{suffix}"
        if index.exists():
            names = read_json(index).get("weight_map")
            if not isinstance(names, dict) or not names:
                raise FormatError(f"{index}: has no weight_map")
            files = [folder / name for name in sorted(set(cast(dict[str, str], names).values()))]
            missing = [path.name for path in files if not path.exists()]
            if missing:
                raise FileError(f"{folder}: {len(missing)} of {len(files)} shards missing: {', '.join(missing)}")
            return files
        if single.exists():
            return [single]
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    if shards:
        raise FileError(f"{folder}: model.safetensors.index.json is missing beside {len(shards)} shards")
    raise FileError(f"{folder}: has neither model.safetensors nor pytorch_model.bin")


# ---- safetensors: 8 bytes of length, JSON, data ----


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        n_file = path.stat().st_size
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            if n_file < 8 or n_header > n_file - 8:
                raise FormatError(f"{path}: truncated: {n_file} bytes, the header alone has {n_header}")
            text = file.read(n_header)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {name: _entry(path, name, entry, 8 + n_header, n_file) for name, entry in header.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: the header is not that of a safetensors file") from error
    return entries


def _entry(path: Path, name: str, entry: Mapping[str, Any], n_before: int, n_file: int) -> Tensor:
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    if entry["dtype"] not in _TYPES:
        raise UnsupportedError(
            f"{path}: tensor '{name}' is {entry['dtype']}; only {', '.join(_TYPES)} can be converted"
        )
    kind, bits = _TYPES[entry["dtype"]]
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(bits).itemsize
    if n_before + end > n_file:
        raise FormatError(f"{path}: truncated: tensor '{name}' ends at byte {n_before + end}, the file has {n_file}")
    if begin < 0 or end - begin != n_bytes:
        raise FormatError(f"{path}: tensor '{name}': {end - begin} bytes, expected {n_bytes} for its shape {shape}")
    return Tensor(name, kind, shape, lambda: _mapped(path, n_before + begin, shape, bits))


def _mapped(path: Path, offset: int, shape: tuple[int, ...], bits: Any) -> Array:
    """A tensor's bits. Only they are mapped, as long as the array lives, so that memory never holds the whole file."""
    n = int(np.prod(shape, dtype=np.int64))
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    n_bytes = offset - start + n * np.dtype(bits).itemsize
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), n_bytes, offset=start, access=mmap.ACCESS_READ)
    return np.frombuffer(memory, np.uint8)[offset - start :].view(bits).reshape(shape)


# ---- PyTorch's own files, if torch is there ----


def _bin_tensors(path: Path) -> dict[str, Tensor]:
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError(f"{path}: torch reads such files and is not installed; or save the model as safetensors")
    torch: Any = importlib.import_module("torch")
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        raise FormatError(f"{path}: torch cannot read it: {str(error).splitlines()[0]}") from error
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.dtype not in kinds:
            raise UnsupportedError(
                f"{path}: tensor '{name}' is {value.dtype}; only {', '.join(_TYPES)} can be converted"
            )
        kind = kinds[value.dtype]
        tensors[name] = Tensor(name, kind, tuple(value.shape), lambda value=value, kind=kind: _of_torch(value, kind))
    return tensors


def _of_torch(value: Any, kind: str) -> Array:
    torch: Any = importlib.import_module("torch")
    bits = torch.int32 if kind == "F32" else torch.int16
    return value.contiguous().view(bits).numpy().view(_TYPES[kind][1])
