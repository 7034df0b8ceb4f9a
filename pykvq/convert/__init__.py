"""Convert a Hugging Face checkpoint into a GGUF file.

Reading order: this file (the steps), `checkpoint` (the folder), `architectures` (rows of data: what becomes of
config.json and the tensors), `vocabulary` (the tokenizer), `check` (what is verified before the file appears).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, FormatError, NumericError
from ..weights import WeightType, convert_rows, weight_type
from . import architectures
from .architectures import ARCHITECTURES, Architecture
from .checkpoint import Checkpoint, Json, Tensor, locate
from .vocabulary import Vocabulary, add_vocabulary, read_vocabulary

if TYPE_CHECKING:
    from ..gguf_writer import GGUFOutput

TYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7)}  # and general.file_type
_SLAB_BYTES = 1 << 24  # of a tensor that are converted at a time

Progress = Callable[[int, int], None]  # bytes written, of how many


@dataclass(frozen=True)
class Converted:
    """What was written."""

    path: Path
    architecture: str
    n_tensors: int
    n_params: int
    n_bytes: int
    n_vocab: int
    pre_tokenizer: str
    n_checked_tokens: int  # of the text that both tokenizers agree on


@dataclass(frozen=True)
class _Planned:
    """A tensor of the new file."""

    name: str
    shape: tuple[int, ...]
    type: WeightType
    slabs: Callable[[], Iterator[Any]]  # its bytes


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    kind: str = "f16",
    *,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write the GGUF file of a checkpoint.

    Args:
        source: a folder with config.json, tokenizer and weights, or hf:owner/repo.
        target: the file to write; it appears when it is complete and checked.
        kind: of the matrices: f32, f16, bf16 or q8_0.
        force: replace a file that is there.
        threads: default: the cores that this process may use.
        progress: is told how many bytes are written, of how many.

    Raises:
        ArgumentError: there is no such kind.
        FileError: a file is missing, or cannot be read or written; the target exists; the disk is full.
        FormatError: a file is damaged, shapes and configuration disagree, the new tokenizer differs from the original.
        UnsupportedError: the architecture, the tokenizer or a setting is not one the runtime knows.
        NumericError: a weight is not finite, or too large for f16.
    """
    from ..gguf_writer import GGUFOutput, check_target
    from .check import check_file

    if kind not in TYPES:
        raise ArgumentError(f"{kind}: no such type; known are {', '.join(TYPES)}")
    check_target(Path(target), force=force)  # before a download
    checkpoint = Checkpoint.open(locate(os.fspath(source)))
    _, row = architectures.find(checkpoint.config)
    config = architectures.settings(checkpoint.config, row)
    architectures.check(config, row)
    planned = _plan(checkpoint, config, row, weight_type(TYPES[kind][0]), threads)
    vocabulary = read_vocabulary(checkpoint, config["vocab_size"])

    with GGUFOutput(target, row.name, force=force) as output:
        _add_general(output.fields, checkpoint, TYPES[kind][1])
        architectures.add_keys(output.fields, config, row)
        add_vocabulary(output.fields, vocabulary, checkpoint)
        for tensor in planned:
            output.add_tensor(tensor.name, tensor.shape, tensor.type)
        output.begin()
        _write(planned, output, progress)
        output.flush()
        n_checked = check_file(output.part, [(t.name, t.type.name, t.shape) for t in planned], vocabulary)
    return Converted(
        path=Path(target),
        architecture=row.name,
        n_tensors=len(planned),
        n_params=sum(int(np.prod(tensor.shape)) for tensor in planned),
        n_bytes=Path(target).stat().st_size,
        n_vocab=len(vocabulary.tokens),
        pre_tokenizer=vocabulary.pre,
        n_checked_tokens=n_checked,
    )


# ---- tensors ----


def _plan(
    checkpoint: Checkpoint, config: Json, row: Architecture, kind: WeightType, threads: int | None
) -> list[_Planned]:
    """The tensors of the file, with names and shapes checked before anything is written."""
    import gguf

    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == row.name)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    planned: dict[str, _Planned] = {}
    for tensor in checkpoint.tensors.values():
        plain = architectures.plain_name(tensor.name)
        if plain is None or (plain == "lm_head.weight" and config.get("tie_word_embeddings")):
            continue
        name = names.get_name(plain, try_suffixes=(".weight", ".bias"))
        shape = architectures.expected_shape(name, config, row) if name else None
        if name is None or shape is None:
            raise FormatError(f"tensor '{tensor.name}': not part of architecture {row.name} as the runtime knows it")
        if tensor.shape != shape:
            raise FormatError(f"tensor '{tensor.name}': has shape {tensor.shape}, config.json implies {shape}")
        planned[name] = _plan_tensor(tensor, name, _type_of(shape, kind), config, row, threads)
    _check_complete(planned, config, row)
    for name, values in architectures.extra_tensors(config):
        planned[name] = _Planned(name, values.shape, weight_type("F32"), lambda values=values: iter([values]))
    return sorted(planned.values(), key=_file_order)


def _file_order(tensor: _Planned) -> tuple[int, str]:
    """Embedding and what is global first, then layer by layer."""
    parts = tensor.name.split(".")
    return (int(parts[1]) if parts[0] == "blk" else -1, tensor.name)


def _check_complete(planned: dict[str, _Planned], config: Json, row: Architecture) -> None:
    missing = [name for name in _needed(config, row) if name not in planned]
    if missing:
        raise FormatError(f"the checkpoint lacks {len(missing)} tensors that {row.name} needs, first '{missing[0]}'")


def _needed(config: Json, row: Architecture) -> Iterator[str]:
    yield "token_embd.weight"
    yield "output_norm.weight"
    if not config.get("tie_word_embeddings"):
        yield "output.weight"
    fused = row.name == "phi3"
    parts = ["attn_norm", "attn_output", "ffn_norm", "ffn_up", "ffn_down"]
    parts += ["attn_qkv"] if fused else ["attn_q", "attn_k", "attn_v", "ffn_gate"]
    for layer in range(config["num_hidden_layers"]):
        yield from (f"blk.{layer}.{part}.weight" for part in parts)


def _type_of(shape: tuple[int, ...], kind: WeightType) -> WeightType:
    """Vectors stay exact; a row that blocks do not divide stays F16."""
    if len(shape) == 1:
        return weight_type("F32")
    return kind if shape[-1] % kind.block_elements == 0 else weight_type("F16")


def _plan_tensor(
    tensor: Tensor, name: str, kind: WeightType, config: Json, row: Architecture, threads: int | None
) -> _Planned:
    part = name.split(".")[2] if name.startswith("blk.") else ""
    n_head = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(part)
    permuted = n_head if row.permute else None
    offset = row.norm_offset if name.endswith("norm.weight") else 0.0
    return _Planned(name, tensor.shape, kind, lambda: _converted(tensor, kind, permuted, offset, threads))


def _converted(
    tensor: Tensor, kind: WeightType, permuted: int | None, offset: float, threads: int | None
) -> Iterator[npt.NDArray[Any]]:
    """A tensor's bytes, in slabs of whole rows; permuted: whole heads, whose halves become pairs."""
    n_per_row = tensor.shape[-1] if len(tensor.shape) > 1 else 1
    values = tensor.read()
    n_heads = permuted or values.size // n_per_row  # rows stand for heads where nothing is permuted
    heads = values.reshape(n_heads, -1, n_per_row)
    if permuted:
        heads = heads.reshape(n_heads, 2, -1, n_per_row).swapaxes(1, 2)
    n_slab = max(1, _SLAB_BYTES * n_heads // values.nbytes)
    for first in range(0, n_heads, n_slab):
        slab = np.ascontiguousarray(heads[first : first + n_slab])
        yield _converted_slab(tensor, slab, kind, n_per_row, offset, threads)


def _converted_slab(
    tensor: Tensor, slab: npt.NDArray[Any], kind: WeightType, n_per_row: int, offset: float, threads: int | None
) -> npt.NDArray[Any]:
    if kind.name == tensor.type and not offset:
        return slab
    rows = slab.size // n_per_row, n_per_row
    try:
        data, _ = convert_rows(slab, weight_type(tensor.type), kind, rows, threads=threads)
    except NumericError as error:
        raise NumericError(f"tensor '{tensor.name}': {error}") from error
    return data.view(np.float32) + np.float32(offset) if offset else data


def _write(planned: list[_Planned], output: GGUFOutput, progress: Progress | None) -> None:
    n_total = sum(tensor.type.n_bytes(int(np.prod(tensor.shape))) for tensor in planned)
    n_done = 0
    for tensor in planned:
        for data in tensor.slabs():
            output.write(data)
            n_done += data.nbytes
            if progress:
                progress(n_done, n_total)
            del data  # it may keep the old tensor mapped
        output.end_tensor()


# ---- general metadata ----


def _add_general(fields: Any, checkpoint: Checkpoint, file_type: int) -> None:
    fields.add_type("model")
    fields.add_name(checkpoint.folder.resolve().name)
    licence = _licence(checkpoint.folder / "README.md")
    if licence:
        fields.add_license(licence)
    fields.add_file_type(file_type)
    fields.add_quantization_version(2)
    settings = checkpoint.optional("generation_config.json")
    for key, add in (
        ("temperature", fields.add_sampling_temp),
        ("top_k", fields.add_sampling_top_k),
        ("top_p", fields.add_sampling_top_p),
        ("min_p", fields.add_sampling_min_p),
        ("repetition_penalty", fields.add_sampling_penalty_repeat),
    ):
        if isinstance(settings.get(key), (int, float)):
            add(settings[key])


def _licence(readme: Path) -> str | None:
    """The `license:` line of a model card's head."""
    if not readme.exists():
        return None
    lines = readme.read_text(encoding="utf-8", errors="replace").split("\n", 60)[:60]
    found = [line.removeprefix("license:").strip() for line in lines if line.startswith("license:")]
    return found[0] if found else None


def markdown_table() -> str:
    """What converts, for the documentation."""
    lines = ["| in config.json | models | GGUF architecture |", "|---|---|---|"]
    lines += [f"| `{name}` | {row.models} | `{row.name}` |" for name, row in ARCHITECTURES.items()]
    return "\n".join(lines) + "\n"


__all__ = ["TYPES", "Converted", "Vocabulary", "convert", "markdown_table"]
