"""Importance matrices: how much each input of each weight matrix matters, from running a model over a text.

The file is llama.cpp's: a GGUF file with two tensors for a matrix NAME, `NAME.in_sum2` (sums of squared activations)
and `NAME.counts` (tokens that were summed over).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._ffi import check, ffi, lib
from .engine import Engine
from .errors import ArgumentError, FormatError
from .gguf import GGUFFile
from .gguf import Tensor as TableRow
from .weights import weight_type

if TYPE_CHECKING:
    from .model import Model

_SUMS, _COUNTS = ".in_sum2", ".counts"
DEFAULT_CHUNK = 512  # tokens


@dataclass
class Entry:
    """Of one matrix."""

    sums: npt.NDArray[np.float64]  # (n_in) of squared activations
    n_tokens: float = 0


@dataclass
class ImportanceMatrix:
    """What running a text has shown.

    Attributes:
        entries: by tensor name.
        dataset: the name of the text.
        n_chunks: pieces of text, each run on its own.
        chunk_size: tokens of a piece.
    """

    path: str = ""
    dataset: str = ""
    n_chunks: int = 0
    chunk_size: int = DEFAULT_CHUNK
    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ImportanceMatrix:
        """Read a file.

        Raises:
            FileError: it cannot be read.
            FormatError: it is not an importance matrix.
        """
        with GGUFFile.open(path) as file:
            if file.metadata.get("general.type") != "imatrix":
                raise FormatError(f"{file.path}: is not an importance matrix, general.type is not 'imatrix'")
            values = {tensor.name: _floats(file, i, tensor) for i, tensor in enumerate(file.tensors)}
            datasets = file.metadata.get("imatrix.datasets", [])
            found = cls(
                path=file.path,
                dataset=", ".join(map(str, datasets)) if isinstance(datasets, list) else "",
                n_chunks=_integer(file, "imatrix.chunk_count"),
                chunk_size=_integer(file, "imatrix.chunk_size"),
            )
        for name, sums in values.items():
            counts = values.get(name.removesuffix(_SUMS) + _COUNTS)
            if name.endswith(_SUMS) and counts is not None and counts.size == 1:
                found.entries[name.removesuffix(_SUMS)] = Entry(sums.astype(np.float64), float(counts[0]))
        if not found.entries:
            raise FormatError(f"{found.path}: holds no matrix")
        return found

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the file, complete or not at all."""
        from .gguf_writer import GGUFOutput

        f32 = weight_type("F32")
        with GGUFOutput(path, "", force=force) as output:
            output.fields.add_type("imatrix")
            output.fields.add_array("imatrix.datasets", [self.dataset])
            output.fields.add_uint32("imatrix.chunk_count", self.n_chunks)
            output.fields.add_uint32("imatrix.chunk_size", self.chunk_size)
            for name, entry in self.entries.items():
                output.add_tensor(name + _SUMS, (1, entry.sums.size), f32)
                output.add_tensor(name + _COUNTS, (1, 1), f32)
            output.begin()
            for entry in self.entries.values():
                for values in (entry.sums, np.array([entry.n_tokens])):
                    output.write(values.astype("<f4"))
                    output.end_tensor()

    def columns(self, tensors: Iterable[TableRow]) -> dict[str, npt.NDArray[np.float32]]:
        """The mean squared activation of each column of these tensors, as far as known.

        Raises:
            FormatError: the matrix is of another model.
        """
        shapes = {tensor.name: tensor.shape for tensor in tensors}
        unknown = [name for name in self.entries if name not in shapes]
        if len(unknown) == len(self.entries):
            raise FormatError(f"{self.path}: is of another model, which has a tensor '{unknown[0]}'")
        found: dict[str, npt.NDArray[np.float32]] = {}
        for name, entry in self.entries.items():
            if name not in shapes or entry.n_tokens <= 0:
                continue
            if shapes[name][-1] != entry.sums.size:
                raise FormatError(
                    f"{self.path}: '{name}' has {entry.sums.size} columns, the model's has {shapes[name][-1]}"
                )
            mean = entry.sums / entry.n_tokens
            if not np.isfinite(mean).all() or (mean < 0).any():
                raise FormatError(f"{self.path}: '{name}' holds values that are no sums of squares")
            found[name] = mean.astype(np.float32)
        return found


def collect(
    model: Model,
    tokens: list[int],
    *,
    dataset: str = "",
    chunk: int = DEFAULT_CHUNK,
    threads: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> ImportanceMatrix:
    """Run a text through a model, in chunks of so many tokens, and sum up what enters its matrices.

    The embedding and the output matrix are left out, as llama.cpp does.

    Args:
        tokens: of the text; the model's begin-of-text token is put in front of each chunk if it wants one.
        dataset: the text's name.
        progress: is told how many chunks are done, of how many, and the perplexity so far.

    Raises:
        ArgumentError: the text is shorter than a chunk.
    """
    bos = [model.tokenizer.bos_id] if model.tokenizer.add_bos and model.tokenizer.bos_id is not None else []
    n_text = chunk - len(bos)
    n_chunks = len(tokens) // n_text if n_text > 0 else 0
    if n_chunks == 0:
        raise ArgumentError(f"text: {len(tokens)} tokens, expected at least a chunk of {chunk}")
    matrix = ImportanceMatrix(dataset=dataset, n_chunks=n_chunks, chunk_size=chunk)
    names = _matrices(model)
    loss = n_scored = 0.0

    def observe(_: Any, weight: Any, x: Any, n_rows: int, n_in: int) -> None:
        name = names.get(int(ffi.cast("uintptr_t", weight)))
        if name is not None:
            values = np.frombuffer(ffi.buffer(x, n_rows * n_in * 4), np.float32).reshape(n_rows, n_in)
            entry = matrix.entries.setdefault(name, Entry(np.zeros(n_in)))
            entry.sums += np.einsum("ij,ij->j", values, values, dtype=np.float64)
            entry.n_tokens += n_rows

    callback = ffi.callback("pykvq_observer", observe)
    with Engine(model, ctx=chunk, batch=chunk, logits=chunk, threads=threads) as engine, engine.sequence() as sequence:
        with engine.use() as handle:
            check(lib.pykvq_engine_observe(handle, callback, ffi.NULL))
        sequence.keep_logits(all_tokens=True)
        for i in range(n_chunks):
            piece = bos + tokens[i * n_text : (i + 1) * n_text]
            sequence.rewind(0)
            sequence.push(piece)
            engine.step([sequence])
            loss += _negative_log_likelihood(sequence.logits(), piece)
            n_scored += len(piece) - 1
            if progress:
                progress(i + 1, n_chunks, float(np.exp(loss / n_scored)))
    return matrix


def _negative_log_likelihood(logits: npt.NDArray[np.float32], tokens: list[int]) -> float:
    """Of the tokens after the first."""
    logits = logits[:-1]
    top = logits.max(axis=1)
    total = np.log(np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)) + top
    return float((total - logits[np.arange(len(logits)), tokens[1:]]).sum())


def _matrices(model: Model) -> dict[int, str]:
    """Names of the layers' matrices by where they lie in memory."""
    file = model.gguf
    raw = ffi.new("pykvq_gguf_tensor *")
    names: dict[int, str] = {}
    for i, tensor in enumerate(file.tensors):
        check(lib.pykvq_gguf_tensor_at(file.handle, i, raw))
        if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
            names[int(ffi.cast("uintptr_t", raw.data))] = tensor.name
    return names


def _floats(file: GGUFFile, index: int, tensor: TableRow) -> npt.NDArray[np.float32]:
    if tensor.type != "F32":
        raise FormatError(f"{file.path}: tensor '{tensor.name}' is {tensor.type}, expected F32")
    raw = ffi.new("pykvq_gguf_tensor *")
    check(lib.pykvq_gguf_tensor_at(file.handle, index, raw))
    return np.frombuffer(bytes(ffi.buffer(raw.data, tensor.n_bytes)), "<f4")


def _integer(file: GGUFFile, key: str) -> int:
    value = file.metadata.get(key, 0)
    return value if isinstance(value, int) else 0
