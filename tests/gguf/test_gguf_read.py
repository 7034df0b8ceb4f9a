"""What the gguf package writes is what we read."""

import struct

import gguf
import numpy as np
import pytest
from gguf_bytes import I64, STRING, U32, array, container, opened, read_tensors, read_values, tensor, u32, value

from pykvq._native import ffi, lib

Kind = gguf.GGUFValueType
SCALARS = {
    Kind.UINT8: [0, 255],
    Kind.INT8: [-128, 127],
    Kind.UINT16: [0, 65535],
    Kind.INT16: [-32768, 32767],
    Kind.UINT32: [0, 2**32 - 1],
    Kind.INT32: [-(2**31), 2**31 - 1],
    Kind.FLOAT32: [-0.0, 1.5, float("inf")],
    Kind.BOOL: [True, False],
    Kind.STRING: ["a", "héllo wörld", "日本語\n\0", "𝄞" * 1000],
    Kind.UINT64: [0, 2**64 - 1],
    Kind.INT64: [-(2**63), 2**63 - 1],
    Kind.FLOAT64: [1e300, -5e-324],
}


def write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_every_value_type(tmp_path):
    path = tmp_path / "values.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    expected = {"general.architecture": "llama"}
    for kind, values in SCALARS.items():
        for i, x in enumerate(values):
            writer.add_key_value(f"{kind.name}.{i}", x, kind)
            expected[f"{kind.name}.{i}"] = x
        writer.add_key_value(f"{kind.name}.array", values, Kind.ARRAY, sub_type=kind)
        expected[f"{kind.name}.array"] = values
    write(writer)
    with opened(path) as file:
        assert read_values(file) == expected
        assert list(read_values(file)) == list(expected)  # in file order
        assert lib.pykvq_gguf_n_tensors(file) == 0  # a vocabulary file
        assert lib.pykvq_gguf_version(file) == 3
        assert lib.pykvq_gguf_n_bytes(file) == path.stat().st_size


@pytest.mark.parametrize("alignment", [32, 64, 1024])
def test_every_tensor_type(tmp_path, alignment):
    path = tmp_path / "tensors.gguf"
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    expected = {}
    for kind, (n_elements, n_bytes) in gguf.GGML_QUANT_SIZES.items():
        if kind == gguf.GGMLQuantizationType.Q8_1:  # a type of activations only; refused, see test_gguf_hostile.py
            continue
        for shape in [(3,), (2, 3), (2, 1, 5), (2, 3, 2, 1)]:
            data = rng.integers(0, 256, (*shape[:-1], shape[-1] * n_bytes), dtype=np.uint8)
            name = f"{kind.name}.{len(shape)}"
            writer.add_tensor(name, data, raw_dtype=kind)
            ne = (shape[-1] * n_elements, *reversed(shape[:-1]))
            expected[name] = (kind.value, ne, data.tobytes())
    write(writer)
    with opened(path) as file:
        assert read_tensors(file) == expected
        assert list(read_tensors(file)) == list(expected)


@pytest.mark.parametrize("small_first", [False, True])
def test_shards(tmp_path, small_first):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=3, small_first_shard=small_first)
    writer.add_string("general.name", "in the first shard")
    tensors = {f"t{i}": np.full((i + 1, 2), i, dtype=np.float32) for i in range(8)}
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    write(writer)
    shards = sorted(tmp_path.glob("*.gguf"))
    assert len(shards) == (4 if small_first else 3)
    with opened(shards[0]) as file:
        values = read_values(file)
        assert values["general.name"] == "in the first shard"
        assert (values["split.no"], values["split.count"], values["split.tensors.count"]) == (0, len(shards), 8)
        assert read_tensors(file) == {name: (0, data.shape[::-1], data.tobytes()) for name, data in tensors.items()}
        assert lib.pykvq_gguf_n_bytes(file) == sum(shard.stat().st_size for shard in shards)


def test_version_2_and_empty_arrays(tmp_path):
    path = tmp_path / "v2.gguf"
    values = (
        array("none", U32, 0, b""),
        array("no strings", STRING, 0, b""),
        array("empty strings", STRING, 2, bytes(16)),
        value("empty", STRING, bytes(8)),
    )
    path.write_bytes(container(values, version=2))
    with opened(path) as file:
        assert lib.pykvq_gguf_version(file) == 2
        assert read_values(file) == {"none": [], "no strings": [], "empty strings": ["", ""], "empty": ""}


def test_last_tensor_needs_no_padding(tmp_path):
    path = tmp_path / "tight.gguf"
    path.write_bytes(container((), (tensor("a", (1,), 0, 0), tensor("b", (1,), 0, 32)), bytes(32) + b"\0\0\x80?"))
    with opened(path) as file:
        assert read_tensors(file)["b"] == (0, (1,), struct.pack("<f", 1))


def test_alignment_of_any_integer_type(tmp_path):
    path = tmp_path / "aligned.gguf"
    values = (value("general.alignment", I64, struct.pack("<q", 4)),)
    path.write_bytes(container(values, (tensor("a", (1,), 0, 0), tensor("b", (1,), 0, 4)), bytes(8), alignment=4))
    with opened(path) as file:
        assert list(read_tensors(file)) == ["a", "b"]


def test_many_names(tmp_path):
    """More entries than fit the smallest index, with names that share their beginnings."""
    path = tmp_path / "many.gguf"
    n = 20_000
    path.write_bytes(
        container(
            tuple(u32(f"blk.{i}.key", i) for i in range(n)),
            tuple(tensor(f"blk.{i}.weight", (1,), 0, 32 * i) for i in range(n)),
            bytes(32 * n),
        )
    )
    with opened(path) as file:
        assert read_values(file) == {f"blk.{i}.key": i for i in range(n)}
        assert lib.pykvq_gguf_n_tensors(file) == n


def test_out_of_range_is_an_argument_error(tmp_path):
    path = tmp_path / "one.gguf"
    path.write_bytes(container((u32("a", 1),)))
    v, t = ffi.new("pykvq_gguf_value *"), ffi.new("pykvq_gguf_tensor *")
    with opened(path) as file:
        assert lib.pykvq_gguf_value_at(file, 1, v) == lib.PYKVQ_E_ARGUMENT
        assert ffi.string(lib.pykvq_last_error()) == b"metadata 1: expected less than 1"
        assert lib.pykvq_gguf_tensor_at(file, 0, t) == lib.PYKVQ_E_ARGUMENT
        assert ffi.string(lib.pykvq_last_error()) == b"tensor 0: expected less than 0"
        assert lib.pykvq_gguf_value_at(file, 0, v) == lib.PYKVQ_OK
        offsets = ffi.new("uint64_t[]", 1)
        assert lib.pykvq_gguf_strings(v, offsets, offsets) == lib.PYKVQ_E_ARGUMENT
    assert lib.pykvq_gguf_open(ffi.NULL, ffi.new("pykvq_gguf **")) == lib.PYKVQ_E_ARGUMENT


def test_everything_is_given_back(tmp_path):
    path = tmp_path / "one.gguf"
    path.write_bytes(container((u32("a", 1),), (tensor("t", (4,), 0, 0),), bytes(16)))
    before = lib.pykvq_allocated_bytes()
    with opened(path):
        assert lib.pykvq_allocated_bytes() > before
    assert lib.pykvq_allocated_bytes() == before
