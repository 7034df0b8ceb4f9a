"""Typed reads of metadata, as a model that opens does them: the right type in any width, or a sentence with the key."""

import struct

import pytest
from gguf_bytes import (
    BOOL,
    F32,
    F64,
    FORMATS,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    array,
    container,
    string,
    u32,
    value,
)

from pykvq._native import ffi, lib

# What a llama model must say before its tensors are looked at.
VALID = {
    "general.architecture": value("general.architecture", STRING, string("llama")),
    "llama.block_count": u32("llama.block_count", 2),
    "llama.embedding_length": u32("llama.embedding_length", 64),
    "llama.context_length": u32("llama.context_length", 64),
    "llama.feed_forward_length": u32("llama.feed_forward_length", 64),
    "llama.attention.head_count": u32("llama.attention.head_count", 4),
    "llama.attention.layer_norm_rms_epsilon": value(
        "llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)
    ),
}
NO_TENSORS = "token_embd.weight"  # the sentence once all metadata has been read


def number(key: str, kind: int, x: float) -> bytes:
    return value(key, kind, struct.pack("<" + FORMATS[kind], x))


def model_error(tmp_path, **changed: bytes | None) -> str:
    """The sentence of opening a model whose metadata is VALID but for these keys."""
    values = {**VALID, **changed}
    path = tmp_path / "m.gguf"
    path.write_bytes(container(tuple(data for data in values.values() if data is not None)))
    out = ffi.new("pykvq_model **")
    assert lib.pykvq_model_open(bytes(path), out) != lib.PYKVQ_OK
    return ffi.string(lib.pykvq_last_error()).decode()


def test_all_valid(tmp_path):
    assert NO_TENSORS in model_error(tmp_path)


@pytest.mark.parametrize("kind", [U8, I8, U16, I16, U32, I32, U64, I64])
def test_integer_of_any_width(tmp_path, kind):
    key = "llama.block_count"
    assert NO_TENSORS in model_error(tmp_path, **{key: number(key, kind, 2)})


@pytest.mark.parametrize("kind", [I8, I16, I32, I64])
def test_negative_integer(tmp_path, kind):
    key = "llama.block_count"
    sentence = f"{key}: expected 0 to 4294967295, got -2"
    assert sentence in model_error(tmp_path, **{key: number(key, kind, -2)})


@pytest.mark.parametrize(("kind", "x"), [(U64, 2**32), (I64, 2**32), (U64, 2**64 - 1)])
def test_integer_out_of_range(tmp_path, kind, x):
    key = "llama.block_count"
    sentence = f"{key}: expected 0 to 4294967295, got {x}"
    assert sentence in model_error(tmp_path, **{key: number(key, kind, x)})


def test_missing(tmp_path):
    key = "llama.block_count"
    assert f"{key}: expected it in the metadata, got none" in model_error(tmp_path, **{key: None})


LAYERS = "llama.block_count"
EPSILON, CAUSAL = "llama.attention.layer_norm_rms_epsilon", "llama.attention.causal"


@pytest.mark.parametrize(
    ("key", "data", "sentence"),
    [
        (LAYERS, number(LAYERS, F32, 2), "expected an integer, got a float32"),
        (LAYERS, value(LAYERS, STRING, string("2")), "expected an integer, got a string"),
        (LAYERS, number(LAYERS, BOOL, True), "expected an integer, got a bool"),
        (
            "llama.block_count",
            array("llama.block_count", U8, 2, b"\2\2"),
            "expected an integer, got an array of 2 uint8",
        ),
        ("general.architecture", u32("general.architecture", 1), "expected a string, got a uint32"),
        (EPSILON, u32(EPSILON, 1), "expected a float, got a uint32"),
        (EPSILON, number(EPSILON, F32, float("nan")), "expected a finite 32-bit float, got one that is not"),
        (EPSILON, number(EPSILON, F64, 1e300), "expected a finite 32-bit float, got one that is not"),
        (CAUSAL, u32(CAUSAL, 1), "expected a bool, got a uint32"),
    ],
)
def test_wrong_type(tmp_path, key, data, sentence):
    assert f"{key}: {sentence}" in model_error(tmp_path, **{key: data})


def test_float_of_64_bits(tmp_path):
    assert NO_TENSORS in model_error(tmp_path, **{EPSILON: number(EPSILON, F64, 1e-5)})


def test_bool(tmp_path):
    assert NO_TENSORS in model_error(tmp_path, **{CAUSAL: number(CAUSAL, BOOL, True)})
    assert "only causal" in model_error(tmp_path, **{CAUSAL: number(CAUSAL, BOOL, False)})


LENGTH = "llama.feed_forward_length"


def test_one_for_each_layer(tmp_path):
    assert NO_TENSORS in model_error(tmp_path, **{LENGTH: array(LENGTH, I32, 2, struct.pack("<2i", 64, 64))})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (array(LENGTH, U32, 3, bytes(12)), "expected an integer or an array of 2 of them, got an array of 3 uint32"),
        (array(LENGTH, F32, 2, bytes(8)), "expected an integer or an array of 2 of them, got an array of 2 float32"),
        (array(LENGTH, I64, 2, struct.pack("<2q", 64, -1)), "expected 0 to 4294967295, got -1"),
    ],
)
def test_wrong_for_each_layer(tmp_path, data, sentence):
    assert f"{LENGTH}: {sentence}" in model_error(tmp_path, **{LENGTH: data})
