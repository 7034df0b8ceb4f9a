"""pykvq.GGUFFile: values and tensors as Python sees them."""

import time

import gguf
import numpy as np
import pytest

import pykvq


@pytest.fixture
def everything(tmp_path):
    """A file with a value of every type, and two tensors."""
    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("text", "wörld \U0001f600")
    writer.add_array("strings", ["a", "", "日本", "x" * 1000])
    writer.add_array("integers", [1, -2, 3])
    writer.add_array("floats", [0.25, -1.5])
    writer.add_array("bools", [True, False, True])
    writer.add_tensor("matrix", np.zeros((3, 64), np.float32))
    writer.add_tensor("packed", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values(everything):
    with pykvq.GGUFFile.open(everything) as file:
        assert dict(file.metadata) == {
            "general.architecture": "llama",
            "u8": 255,
            "i8": -128,
            "u16": 65535,
            "i16": -32768,
            "u32": 2**32 - 1,
            "i32": -(2**31),
            "u64": 2**64 - 1,
            "i64": -(2**63),
            "f32": 0.5,
            "f64": 0.1,
            "yes": True,
            "no": False,
            "text": "wörld \U0001f600",
            "strings": ["a", "", "日本", "x" * 1000],
            "integers": [1, -2, 3],
            "floats": [0.25, -1.5],
            "bools": [True, False, True],
        }
        assert type(file.metadata["yes"]) is bool
        assert type(file.metadata["u8"]) is int


def test_mapping(everything):
    with pykvq.GGUFFile.open(everything) as file:
        assert "u8" in file.metadata
        assert "nothing" not in file.metadata
        assert file.metadata.get("nothing", 7) == 7
        with pytest.raises(KeyError):
            file.metadata["nothing"]


def test_tensors(everything):
    with pykvq.GGUFFile.open(everything) as file:
        assert file.tensors == [("matrix", "F32", (3, 64), 3 * 64 * 4), ("packed", "Q8_0", (2, 32), 68)]
        assert file.n_bytes == everything.stat().st_size
        assert file.version == 3


def test_close(everything):
    file = pykvq.GGUFFile.open(everything)
    assert file.metadata["u8"] == 255
    file.close()
    file.close()
    assert file.metadata["u8"] == 255  # decoded while it was open
    with pytest.raises(pykvq.ArgumentError, match="the file is closed"):
        file.metadata["text"]


def test_long_string_array_is_quick(tmp_path):
    tokens = [f"token {i}" for i in range(150_000)]
    writer = gguf.GGUFWriter(tmp_path / "long.gguf", "llama")
    writer.add_array("tokens", tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pykvq.GGUFFile.open(tmp_path / "long.gguf") as file:
        begin = time.process_time()
        assert file.metadata["tokens"] == tokens
        assert time.process_time() - begin < 0.5


def test_file_of_a_model(tiny_llama):
    with pykvq.Model.open(tiny_llama) as model:
        file = model.gguf
        assert file.metadata["general.name"] == "tiny"
    with pytest.raises(pykvq.ArgumentError, match="the model is closed"):
        file.metadata["tokenizer.ggml.tokens"]


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_impossible_names(path):
    with pytest.raises(pykvq.ArgumentError, match="not a file name"):
        pykvq.GGUFFile.open(path)


def test_errors_are_also_the_usual_ones(tmp_path):
    with pytest.raises(OSError, match="missing"):
        pykvq.GGUFFile.open(tmp_path / "missing.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"what is this? not a model")
    with pytest.raises(ValueError, match="GGUF"):
        pykvq.GGUFFile.open(tmp_path / "bad.gguf")
