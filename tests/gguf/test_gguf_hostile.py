"""Whatever the bytes of a file are, the answer is a GGUF or one clear sentence."""

import io
import os
import random
import struct
import zipfile

import pytest
from gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    STRING,
    U8,
    U16,
    U32,
    U64,
    array,
    container,
    opened,
    read_tensors,
    read_values,
    shard,
    string,
    tensor,
    try_open,
    u32,
    value,
)

from pykvq._native import lib

FORMAT, FILE, UNSUPPORTED, ARGUMENT = (
    lib.PYKVQ_E_FORMAT,
    lib.PYKVQ_E_FILE,
    lib.PYKVQ_E_UNSUPPORTED,
    lib.PYKVQ_E_ARGUMENT,
)
HUGE = 2**64 - 1


def zip_bytes() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    return file.getvalue()


SAFETENSORS = struct.pack("<Q", 40) + b'{"__metadata__":{"format":"pt"}}        '
T = tensor("t", (4,), 0, 0)

# name -> (bytes, status, sentence after "PATH: ")
CASES = {
    # not a GGUF file
    "empty": (b"", FORMAT, "expected a GGUF file, got an empty one"),
    "three_bytes": (b"GGU", FORMAT, "expected a GGUF file of at least 24 bytes, got 3"),
    "short": (b"GGUF" + bytes(19), FORMAT, "expected a GGUF file of at least 24 bytes, got 23"),
    "magic": (b"ABCD" + bytes(40), FORMAT, "expected a GGUF file, whose first bytes are 47 47 55 46, got 41 42 43 44"),
    "safetensors": (
        SAFETENSORS,
        FORMAT,
        "expected a GGUF file, got a safetensors file: convert the model to GGUF first",
    ),
    "zip": (
        zip_bytes(),
        FORMAT,
        "expected a GGUF file, got a zip archive, perhaps a PyTorch checkpoint: convert the model to GGUF first",
    ),
    "html": (
        b"\n <!DOCTYPE html><html>404</html>",
        FORMAT,
        "expected a GGUF file, got an HTML page: the download got a web page instead of the file",
    ),
    "git_lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        FORMAT,
        "expected a GGUF file, got a git-lfs pointer: fetch the file itself with git lfs pull",
    ),
    "ggml": (
        b"tjgg" + bytes(40),
        FORMAT,
        "expected a GGUF file, got a GGML file from before GGUF: convert the model to GGUF first",
    ),
    "zeros": (bytes(4096), FORMAT, "expected a GGUF file, got zeros: an unfinished download?"),
    # header
    "version_0": (container(version=0), UNSUPPORTED, "expected GGUF version 2 or 3, got 0"),
    "version_1": (container(version=1), UNSUPPORTED, "expected GGUF version 2 or 3, got 1"),
    "version_4": (container(version=4), UNSUPPORTED, "expected GGUF version 2 or 3, got 4"),
    "big_endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        UNSUPPORTED,
        "expected a little-endian GGUF file, got a big-endian one",
    ),
    "n_values": (
        container(n_values=HUGE),
        FORMAT,
        f"number of metadata values: expected at most 1 in a file of 24 bytes, got {HUGE}",
    ),
    "n_tensors": (
        container(n_tensors=2**40),
        FORMAT,
        f"number of tensors: expected at most 0 in a file of 24 bytes, got {2**40}",
    ),
    "n_values_more": (
        container((u32("a", 1),), n_values=2),
        FORMAT,
        "metadata 1: key: expected 8 bytes at offset 41, got 0 to the end",
    ),
    # metadata
    "key_length": (
        container((struct.pack("<Q", HUGE) + bytes(32),)),
        FORMAT,
        f"metadata 0: key: expected {HUGE} bytes at offset 32, got 32 to the end",
    ),
    "key_empty": (container((u32("", 1),)), FORMAT, "metadata 0: key: expected 1 to 65535 bytes, got 0"),
    "key_long": (container((u32("k" * 65536, 1),)), FORMAT, "metadata 0: key: expected 1 to 65535 bytes, got 65536"),
    "key_utf8": (
        container((value(b"ab\xff", U8, b"\0"),)),
        FORMAT,
        "metadata 0: key: expected UTF-8, got byte 0xff at offset 34",
    ),
    "key_twice": (
        container((u32("a", 1), u32("b", 1), u32("a", 2))),
        FORMAT,
        "metadata 2: a: expected a name of its own, got that of number 0 again",
    ),
    "value_type": (
        container((value("a", 13, bytes(8)),)),
        FORMAT,
        "metadata 0: a: expected a value type from 0 to 12, got 13",
    ),
    "value_missing": (
        container((value("abcd", U64, bytes(7)),)),
        FORMAT,
        "metadata 0: abcd: elements: expected 8 bytes at offset 40, got 7 to the end",
    ),
    "string_length": (
        container((value("a", STRING, struct.pack("<Q", 2**63)),)),
        FORMAT,
        f"metadata 0: a: element 0 of 1: string: expected {2**63} bytes at offset 45, got 0 to the end",
    ),
    "bool": (
        container((array("a", BOOL, 3, b"\0\1\2"),)),
        FORMAT,
        "metadata 0: a: element 2 of 3: expected 0 or 1, got 2",
    ),
    "array_type": (
        container((array("a", 99, 1, bytes(8)),)),
        FORMAT,
        "metadata 0: a: expected a value type from 0 to 12, got 99",
    ),
    "array_nested": (
        container((array("a", ARRAY, 1, bytes(20)),)),
        UNSUPPORTED,
        "metadata 0: a: expected an array of plain values, got one of arrays",
    ),
    "array_overflow": (
        container((array("a", U64, 2**61, b""),)),
        FORMAT,
        f"metadata 0: a: elements: expected {HUGE} bytes at offset 49, got 0 to the end",
    ),
    "array_long": (
        container((array("a", U32, 3, bytes(8)),)),
        FORMAT,
        "metadata 0: a: elements: expected 12 bytes at offset 49, got 8 to the end",
    ),
    "array_strings": (
        container((array("a", STRING, HUGE, string("x")),)),
        FORMAT,
        f"metadata 0: a: element 1 of {HUGE}: string: expected 8 bytes at offset 58, got 0 to the end",
    ),
    "control_characters": (
        container((value("\x1b[2J\x9b\n", 13, b""),)),
        FORMAT,
        "metadata 0: ?[2J???: expected a value type from 0 to 12, got 13",
    ),
    "name_cut": (
        container((value("k" * 100, 13, b""),)),
        FORMAT,
        f"metadata 0: {'k' * 68}...: expected a value type from 0 to 12, got 13",
    ),
    "alignment_0": (
        container((u32("general.alignment", 0),)),
        FORMAT,
        "general.alignment: expected a power of two, got 0",
    ),
    "alignment_24": (
        container((u32("general.alignment", 24),)),
        FORMAT,
        "general.alignment: expected a power of two, got 24",
    ),
    "alignment_type": (
        container((value("general.alignment", F32, struct.pack("<f", 32)),)),
        FORMAT,
        "general.alignment: expected an integer, got a float32",
    ),
    "alignment_array": (
        container((array("general.alignment", U16, 2, bytes(4)),)),
        FORMAT,
        "general.alignment: expected an integer, got an array of 2 uint16",
    ),
    "alignment_huge": (
        container((value("general.alignment", U64, struct.pack("<Q", 2**40)),)),
        FORMAT,
        f"general.alignment: expected 0 to {2**32 - 1}, got {2**40}",
    ),
    # tensors
    "name_empty": (
        container((), (tensor("", (4,), 0, 0),), bytes(16)),
        FORMAT,
        "tensor 0: name: expected 1 to 65535 bytes, got 0",
    ),
    "name_twice": (
        container((), (T, tensor("t", (4,), 0, 32)), bytes(64)),
        FORMAT,
        "tensor 1: t: expected a name of its own, got that of number 0 again",
    ),
    "name_utf8": (
        container((), (tensor(b"\xed\xa0\x80", (4,), 0, 0),), bytes(16)),
        FORMAT,
        "tensor 0: name: expected UTF-8, got byte 0xed at offset 32",
    ),
    "n_dims_0": (
        container((), (tensor("t", (), 0, 0),), bytes(64)),
        FORMAT,
        "tensor 0: t: expected 1 to 4 dimensions, got 0",
    ),
    "n_dims_5": (
        container((), (tensor("t", (1,) * 5, 0, 0),), bytes(64)),
        FORMAT,
        "tensor 0: t: expected 1 to 4 dimensions, got 5",
    ),
    "dimension_0": (
        container((), (tensor("t", (4, 0), 0, 0),), bytes(64)),
        FORMAT,
        "tensor 0: t: dimension 1: expected at least 1 element, got 0",
    ),
    "elements_overflow": (
        container((), (tensor("t", (2**32, 2**32), 0, 0),), bytes(64)),
        FORMAT,
        f"tensor 0: t: expected fewer than 2^64 elements, got {2**32} x {2**32} x 1 x 1",
    ),
    "bytes_overflow": (
        container((), (tensor("t", (2**62,), 0, 0),), bytes(64)),
        FORMAT,
        f"tensor 0: t: F32: expected fewer than 2^64 bytes, got {2**62} elements",
    ),
    "end_overflow": (
        container((), (tensor("t", (HUGE - 7,), 24, 0),), bytes(64)),
        FORMAT,
        f"tensor 0: t: expected fewer than 2^64 bytes up to its end, got {HUGE - 7} from offset 0",
    ),
    "type_unknown": (
        container((), (tensor("t", (4,), 4711, 0),), bytes(64)),
        UNSUPPORTED,
        "tensor 0: t: expected a tensor type this build knows, got 4711",
    ),
    "type_removed": (
        container((), (tensor("t", (32,), 4, 0),), bytes(64)),
        UNSUPPORTED,
        "tensor 0: t: expected a tensor type this build knows, got 4 (Q4_2)",
    ),
    "type_q8_1": (
        container((), (tensor("t", (32,), 9, 0),), bytes(64)),
        UNSUPPORTED,
        "tensor 0: t: expected a tensor type this build knows, got 9 (Q8_1)",
    ),
    "row": (
        container((), (tensor("t", (100, 64), 12, 0),), bytes(9999)),
        FORMAT,
        "tensor 0: t: Q4_K: expected rows of a multiple of 256 elements, got 100",
    ),
    "offset_unaligned": (
        container((), (T, tensor("u", (4,), 0, 16)), bytes(64)),
        FORMAT,
        "tensor 1: u: expected an offset that is a multiple of 32, got 16",
    ),
    "offset_overlap": (
        container((), (T, tensor("u", (4,), 0, 0)), bytes(64)),
        FORMAT,
        "tensor 1: u: expected offset 32, where the tensor before it ends, got 0",
    ),
    "offset_gap": (
        container((), (T, tensor("u", (4,), 0, 64)), bytes(128)),
        FORMAT,
        "tensor 1: u: expected offset 32, where the tensor before it ends, got 64",
    ),
    "offset_far": (
        container((), (tensor("t", (4,), 0, HUGE - 31),), bytes(64)),
        FORMAT,
        f"tensor 0: t: expected offset 0, where the tensor before it ends, got {HUGE - 31}",
    ),
    "data_short": (
        container((), (T,), bytes(15)),
        FORMAT,
        "tensor 0: t: expected 16 bytes at offset 64, got a file of 79: is it complete?",
    ),
    "data_none": (
        container((u32("general.alignment", 2**31),), (T,), b""),
        FORMAT,
        f"tensor 0: t: expected 16 bytes at offset {2**31}, got a file of 96: is it complete?",
    ),
    "split_no": (
        shard(3, 3, 1, (T,), bytes(16)),
        FORMAT,
        "split.no: expected less than split.count 3, got 3",
    ),
    "split_name": (
        shard(0, 3, 1, (T,), bytes(16)),
        ARGUMENT,
        "shard 1 of 3: expected a name that ends in -00001-of-00003.gguf",
    ),
    "split_keys": (
        container((value("split.count", U16, b"\2\0"),)),
        FORMAT,
        "split.no: expected it in the metadata, got none",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sentence(tmp_path, name):
    data, status, sentence = CASES[name]
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(data)
    before = lib.pykvq_allocated_bytes()
    assert try_open(path) == (status, f"{path}: {sentence}")
    assert lib.pykvq_allocated_bytes() == before


UTF8 = [
    (b"\x7f", True),
    (b"\xc2\x80", True),
    (b"\xdf\xbf", True),
    (b"\xe0\xa0\x80", True),
    (b"\xed\x9f\xbf", True),
    (b"\xef\xbf\xbf", True),
    (b"\xf0\x90\x80\x80", True),
    (b"\xf4\x8f\xbf\xbf", True),
    (b"\x80", False),  # a continuation without its start
    (b"\xc1\xbf", False),  # overlong
    (b"\xe0\x9f\xbf", False),
    (b"\xf0\x8f\xbf\xbf", False),
    (b"\xed\xa0\x80", False),  # a surrogate
    (b"\xf4\x90\x80\x80", False),  # above U+10FFFF
    (b"\xf5\x80\x80\x80", False),
    (b"\xc3", False),  # cut short
    (b"\xe2\x82", False),
    (b"\xf0\x9f\x98", False),
    (b"\xc3(", False),
    (b"\xe2\x82(", False),
    (b"\xf0\x9f\x98(", False),
]


@pytest.mark.parametrize(("text", "valid"), UTF8)
def test_utf8(tmp_path, text, valid):
    path = tmp_path / "text.gguf"
    path.write_bytes(container((value("a", STRING, string(b"x" + text)),)))
    status, sentence = try_open(path)
    assert status == (0 if valid else FORMAT)
    assert valid or "expected UTF-8" in sentence


def test_missing(tmp_path):
    path = tmp_path / "none.gguf"
    assert try_open(path) == (FILE, f"{path}: no such file")


def test_directory(tmp_path):
    assert try_open(tmp_path) == (FILE, f"{tmp_path}: expected a GGUF file, got a directory")


def test_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert try_open(path) == (FILE, f"{path}: expected a GGUF file, got something that is not a regular file")


def test_no_permission(tmp_path):
    path = tmp_path / "secret.gguf"
    path.write_bytes(container())
    path.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)  # root may read everything
    try:
        assert try_open(path) == (FILE, f"{path}: no permission to read it")
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def shards(tmp_path):
    """Three shards of one tensor each."""
    paths = [tmp_path / f"m-0000{i + 1}-of-00003.gguf" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(shard(i, 3, 3, (tensor(f"t{i}", (4,), 0, 0),), bytes([i]) * 16))
    return paths


def test_shards_open(shards):
    with opened(shards[0]) as file:
        assert read_tensors(file) == {f"t{i}": (0, (4,), bytes([i]) * 16) for i in range(3)}


def test_shard_that_is_not_the_first(shards):
    assert try_open(shards[1]) == (ARGUMENT, f"{shards[1]}: shard 2 of 3: expected the first one: open {shards[0]}")


def test_shard_missing(shards):
    shards[2].unlink()
    assert try_open(shards[0]) == (FILE, f"{shards[0]}: shard 3 of 3: {shards[2]}: no such file")


def test_shard_of_something_else(shards):
    shards[1].write_bytes(shard(1, 2, 3, (T,), bytes(16)))
    sentence = "expected shard 2 of 3 with 3 tensors in all, got 2 of 2 with 3"
    assert try_open(shards[0]) == (FORMAT, f"{shards[0]}: shard 2 of 3: {shards[1]}: {sentence}")


def test_shard_without_split_keys(shards):
    shards[1].write_bytes(container((), (T,), bytes(16)))
    sentence = "expected shard 2 of 3 with 3 tensors in all, got 1 of 1 with 0"
    assert try_open(shards[0]) == (FORMAT, f"{shards[0]}: shard 2 of 3: {shards[1]}: {sentence}")


def test_shard_broken(shards):
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    status, sentence = try_open(shards[0])
    assert status == FORMAT
    assert sentence.startswith(f"{shards[2]}: tensor 0: t2: expected 16 bytes")


def test_shards_with_one_tensor_twice(shards):
    shards[2].write_bytes(shard(2, 3, 3, (tensor("t0", (4,), 0, 0),), bytes(16)))
    sentence = "tensor 2: t0: expected a name of its own, got that of number 0 again"
    assert try_open(shards[0]) == (FORMAT, f"{shards[2]}: {sentence}")


def test_shards_with_too_few_tensors(shards):
    for i, path in enumerate(shards):
        path.write_bytes(shard(i, 3, 4, (tensor(f"t{i}", (4,), 0, 0),), bytes(16)))
    sentence = "split.tensors.count: expected 3, the tensors of all shards, got 4"
    assert try_open(shards[0]) == (FORMAT, f"{shards[0]}: {sentence}")


def small_file() -> tuple[bytes, int]:
    """All kinds of entries in one page exactly, so that a read past the end is a crash; and where the data starts."""
    values = (
        u32("general.alignment", 32),
        value("general.name", STRING, string("näme")),
        array("tokens", STRING, 3, string("a") + string("") + string("日本")),
        array("scores", F32, 2, struct.pack("<2f", 1, 2)),
        value("flag", BOOL, b"\1"),
    )
    tensors = (tensor("w", (256, 4), 12, 0), tensor("b", (2, 1, 1, 400), 0, 576))
    n_data = 4 * 144 + 4 * 2 * 400
    file = container(values, tensors, bytes(n_data))
    assert len(file) == 4096
    return file, len(file) - n_data


def test_every_truncation(tmp_path):
    data, _ = small_file()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data)
    with opened(path):
        pass
    for n in reversed(range(len(data))):
        os.truncate(path, n)
        status, sentence = try_open(path)
        assert status == FORMAT, n
        assert sentence.startswith(f"{path}: "), n
        assert ", got " in sentence, n


def test_bit_flips(tmp_path):
    """Flipped bits either open, and then everything can be read, or give a sentence."""
    data, n_head = small_file()
    path = tmp_path / "flipped.gguf"
    rng = random.Random(7)
    n_opened = 0
    with path.open("wb", buffering=0) as out:
        for _ in range(4000):
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 1, 2, 8))):
                flipped[rng.randrange(n_head)] ^= 1 << rng.randrange(8)
            os.pwrite(out.fileno(), flipped, 0)
            status, sentence = try_open(path)
            if status == 0:
                n_opened += 1
                with opened(path) as file:
                    read_values(file)
                    read_tensors(file)
            else:
                assert status in (FORMAT, UNSUPPORTED, ARGUMENT)
                assert sentence.startswith(f"{path}: ")
    assert 0 < n_opened < 4000


def test_every_failing_allocation(shards):
    before = lib.pykvq_allocated_bytes()
    for n in range(1000):
        lib.pykvq_fail_allocation(n)
        status, sentence = try_open(shards[0])
        lib.pykvq_fail_allocation(HUGE)
        assert lib.pykvq_allocated_bytes() == before
        if status == 0:
            break
        assert status == lib.PYKVQ_E_MEMORY
        assert "no memory" in sentence
    assert 10 < n < 1000
