"""Quantize a GGUF file: which type each tensor gets, and the work itself.

The mixes are llama.cpp's, so that a name means the same file to both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ._ffi import check, ffi, lib
from .errors import ArgumentError, FormatError, UnsupportedError
from .gguf import GGUFFile
from .gguf import Tensor as TableRow
from .weights import Loss, WeightType, convert_rows, weight_type

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .imatrix import ImportanceMatrix

_SLAB_ELEMENTS = 1 << 25  # that are quantized before they are written
_QUANTIZATION_VERSION = 2  # of GGML's block formats
_FLOATS = ("F32", "F16", "BF16")


# ---- which type a tensor gets ----


class Place(NamedTuple):
    """Where a tensor stands, for the rules."""

    layer: int
    n_layer: int
    head_group: int  # query heads per KV head
    weighted: bool  # by an importance matrix


When = Callable[[Place], bool]


def _always(place: Place) -> bool:
    return True


def _first(n: int) -> When:
    return lambda place: place.layer < n


def _first_part(n: int) -> When:
    return lambda place: place.layer < place.n_layer // n


def _shared_heads(place: Place) -> bool:
    return place.head_group >= 4


def _more_bits(place: Place) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    layer, n = place.layer, place.n_layer
    return layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2


def _weighted_first_part(place: Place) -> bool:
    return place.weighted and _first_part(8)(place)


def _unweighted_first_part(place: Place) -> bool:
    return not place.weighted and _first_part(8)(place)


Rules = tuple[tuple[When, str], ...]  # the first that holds decides; none: the mix's base


@dataclass(frozen=True)
class Mix:
    """What a name such as Q4_K_M stands for."""

    file_type: int  # general.file_type
    base: str
    attn_v: Rules = ()  # also of the fused attn_qkv
    attn_output: Rules = ()
    ffn_down: Rules = ()


MIXES = {
    "F32": Mix(0, "F32"),
    "F16": Mix(1, "F16"),
    "BF16": Mix(32, "BF16"),
    "Q8_0": Mix(7, "Q8_0"),
    "Q4_0": Mix(2, "Q4_0", ffn_down=((_weighted_first_part, "Q4_1"),)),
    "Q4_1": Mix(3, "Q4_1"),
    "Q5_0": Mix(8, "Q5_0", ffn_down=((_weighted_first_part, "Q5_1"),)),
    "Q5_1": Mix(9, "Q5_1"),
    "Q6_K": Mix(18, "Q6_K"),
    "Q5_K_M": Mix(17, "Q5_K", attn_v=((_more_bits, "Q6_K"),), ffn_down=((_more_bits, "Q6_K"),)),
    "Q5_K_S": Mix(16, "Q5_K"),
    "Q4_K_M": Mix(15, "Q4_K", attn_v=((_more_bits, "Q6_K"),), ffn_down=((_more_bits, "Q6_K"),)),
    "Q4_K_S": Mix(14, "Q4_K", attn_v=((_first(4), "Q5_K"),), ffn_down=((_first_part(8), "Q5_K"),)),
    "Q3_K_M": Mix(
        12,
        "Q3_K",
        attn_v=((_first(2), "Q5_K"), (_always, "Q4_K")),
        attn_output=((_always, "Q4_K"),),
        ffn_down=((_first_part(16), "Q5_K"), (_always, "Q4_K")),
    ),
    "Q2_K": Mix(
        10,
        "Q2_K",
        attn_v=((_shared_heads, "Q4_K"), (_always, "Q3_K")),
        attn_output=((_always, "Q3_K"),),
        ffn_down=((_always, "Q3_K"),),
    ),
    "IQ4_NL": Mix(25, "IQ4_NL", attn_v=((_shared_heads, "Q5_K"),), ffn_down=((_unweighted_first_part, "Q5_K"),)),
}

# what takes the place of a type whose blocks do not divide a row
_NARROWER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True)
class _Shape:
    """What the rules need to know of a model."""

    n_layer: int
    head_group: int
    is_llama_70b: bool
    tied: bool  # the embedding is the output matrix too

    @classmethod
    def of(cls, file: GGUFFile) -> _Shape:
        arch = file.metadata.get("general.architecture")
        n_layer, n_head = (_count(file, f"{arch}.{key}") for key in ("block_count", "attention.head_count"))
        n_head_kv = _count(file, f"{arch}.attention.head_count_kv", n_head)
        return cls(
            n_layer=n_layer,
            head_group=n_head // max(n_head_kv, 1),
            is_llama_70b=arch == "llama" and n_layer == 80 and n_head != n_head_kv,
            tied=all(tensor.name != "output.weight" for tensor in file.tensors),
        )


def _count(file: GGUFFile, key: str, default: int | None = None) -> int:
    value = file.metadata.get(key, default)
    if isinstance(value, list):
        value = value[0] if value else None
    if not isinstance(value, int):
        raise FormatError(f"{file.path}: {key}: expected an integer, found {value!r}; is this a language model?")
    return value


def choose_type(mix: Mix, tensor: TableRow, shape: _Shape, *, weighted: bool) -> str:
    """The type that a tensor gets; its own if it stays as it is."""
    name = tensor.name
    if len(tensor.shape) != 2 or not name.endswith(".weight") or name.endswith("_norm.weight"):
        return tensor.type
    return _fitting(_by_rules(mix, tensor, shape, weighted), tensor.shape[-1])


def _by_rules(mix: Mix, tensor: TableRow, shape: _Shape, weighted: bool) -> str:
    if mix.base in _FLOATS:
        return mix.base
    if tensor.name == "output.weight" or (shape.tied and tensor.name == "token_embd.weight"):
        divides = tensor.shape[-1] % weight_type(mix.base).block_elements == 0
        return "Q8_0" if mix.base == "Q8_0" or not divides else "Q6_K"
    parts = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
    if parts is None:
        return mix.base
    rules = {
        "attn_v": mix.attn_v,
        "attn_qkv": mix.attn_v,
        "attn_output": mix.attn_output,
        "ffn_down": mix.ffn_down,
    }.get(parts[2], ())
    place = Place(int(parts[1]), shape.n_layer, shape.head_group, weighted)
    chosen = next((kind for when, kind in rules if when(place)), mix.base)
    if shape.is_llama_70b and parts[2] in ("attn_v", "attn_qkv") and chosen in ("Q3_K", "Q4_K"):
        return "Q5_K"  # 8 heads share these, so they are small and matter much
    return chosen


def _fitting(kind: str, n_per_row: int) -> str:
    """The type, or what takes its place in rows of this length."""
    if n_per_row % weight_type(kind).block_elements == 0:
        return kind
    kind = _NARROWER.get(kind, kind)
    return kind if n_per_row % weight_type(kind).block_elements == 0 else "F16"


# ---- the work ----


@dataclass(frozen=True)
class QuantizedTensor:
    """What became of a tensor."""

    name: str
    shape: tuple[int, ...]
    old_type: str
    new_type: str
    n_old_bytes: int
    n_new_bytes: int
    loss: Loss | None  # None: the bytes were copied


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    mix: str,
    *,
    imatrix: ImportanceMatrix | None = None,
    requantize: bool = False,
    force: bool = False,
    threads: int | None = None,
) -> Iterator[QuantizedTensor]:
    """Write `target`, a copy of the GGUF file `source` with its matrices in fewer bits, tensor by tensor.

    The work is done while the iterator runs; the file appears when it has ended.

    Args:
        mix: a name of `MIXES`.
        imatrix: how much each input of a matrix matters.
        requantize: also take matrices that are quantized already, which loses more than quantizing the original.
        force: replace a file that is there.
        threads: default: the cores that this process may use.

    Raises:
        ArgumentError: there is no such mix.
        FileError: a file cannot be read or written, or the target exists.
        FormatError: the source is not a sound GGUF file, or the importance matrix is of another model.
        UnsupportedError: the source is quantized already.
        NumericError: a weight is not finite.
    """
    from .gguf_writer import GGUFOutput

    if mix not in MIXES:
        raise ArgumentError(f"{mix}: no such type; known are {', '.join(MIXES)}")
    with GGUFFile.open(source) as file:
        if os.path.exists(target) and os.path.samefile(source, target):  # noqa: PTH110, PTH121 - paths of any kind
            raise ArgumentError(f"{file.path}: is source and target at once")
        shape = _Shape.of(file)
        types = {t.name: choose_type(MIXES[mix], t, shape, weighted=imatrix is not None) for t in file.tensors}
        _check_sources(file, types, requantize)
        weights = imatrix.columns(file.tensors) if imatrix else {}
        with GGUFOutput(target, "", force=force) as output:
            _copy_metadata(file, output, mix, imatrix)
            for tensor in file.tensors:
                output.add_tensor(tensor.name, tensor.shape, weight_type(types[tensor.name]))
            output.begin()
            for i, tensor in enumerate(file.tensors):
                new_type = weight_type(types[tensor.name])
                loss = _write_tensor(file, i, tensor, new_type, weights.get(tensor.name), threads, output)
                output.end_tensor()
                n_bytes = new_type.n_bytes(_n_elements(tensor))
                yield QuantizedTensor(
                    tensor.name, tensor.shape, tensor.type, new_type.name, tensor.n_bytes, n_bytes, loss
                )


def _check_sources(file: GGUFFile, types: dict[str, str], requantize: bool) -> None:
    for tensor in file.tensors:
        weight_type(tensor.type)  # a type the library cannot read is refused here
        if types[tensor.name] != tensor.type and tensor.type not in _FLOATS and not requantize:
            raise UnsupportedError(
                f"{file.path}: tensor '{tensor.name}' is {tensor.type} already; quantize the original, "
                "or say --requantize and lose a little more"
            )


def _copy_metadata(file: GGUFFile, output: Any, mix: str, imatrix: ImportanceMatrix | None) -> None:
    replaced = ("general.quantization_version", "general.file_type", "general.alignment")
    raw = ffi.new("pykvq_gguf_value *")
    for i, key in enumerate(file.metadata):
        if key in replaced or key.startswith(("split.", "quantize.imatrix.")):
            continue
        check(lib.pykvq_gguf_value_at(file.handle, i, raw))
        output.copy_value(raw)
    output.fields.add_quantization_version(_QUANTIZATION_VERSION)
    output.fields.add_file_type(MIXES[mix].file_type)
    if imatrix is not None:
        output.fields.add_string("quantize.imatrix.file", os.path.basename(imatrix.path))  # noqa: PTH119
        output.fields.add_string("quantize.imatrix.dataset", imatrix.dataset)
        output.fields.add_int32("quantize.imatrix.entries_count", len(imatrix.entries))
        output.fields.add_int32("quantize.imatrix.chunks_count", imatrix.n_chunks)


def _n_elements(tensor: TableRow) -> int:
    n = 1
    for extent in tensor.shape:
        n *= extent
    return n


def _write_tensor(
    file: GGUFFile,
    index: int,
    tensor: TableRow,
    new_type: WeightType,
    importance: npt.NDArray[np.float32] | None,
    threads: int | None,
    output: Any,
) -> Loss | None:
    raw = ffi.new("pykvq_gguf_tensor *")
    check(lib.pykvq_gguf_tensor_at(file.handle, index, raw))
    if new_type.name == tensor.type:
        output.write(ffi.buffer(raw.data, tensor.n_bytes))
        return None
    old_type = weight_type(tensor.type)
    n_per_row = tensor.shape[-1]
    n_rows = _n_elements(tensor) // n_per_row
    n_slab_rows = max(1, _SLAB_ELEMENTS // n_per_row)
    loss = Loss()
    for row in range(0, n_rows, n_slab_rows):
        n = min(n_slab_rows, n_rows - row)
        src = raw.data + old_type.n_bytes(row * n_per_row)
        try:
            data, slab_loss = convert_rows(
                src, old_type, new_type, (n, n_per_row), importance=importance, threads=threads
            )
        except Exception as error:
            raise type(error)(f"{file.path}: tensor '{tensor.name}': {error}") from error
        loss.add(slab_loss)
        output.write(data)
    return loss
