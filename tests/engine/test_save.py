"""Saved sequences: bit-identical continuation, and every file that does not fit refused with a sentence."""

import struct

import numpy as np
import pytest

import pykvq
from pykvq import errors

from . import tiny
from .saved_file import HEADER_BYTES, LAYER_BYTES, last_byte_of_tile, with_checksum
from .test_sequences import TEXT, feed


@pytest.fixture(scope="module", params=["plain", "windowed"])
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "model.gguf"
    tiny.write(path, window=100 if request.param == "windowed" else None)
    with pykvq.Model.open(path) as model:
        yield model


def logits_of(engine, sequence, tokens):
    sequence.push(tokens)
    feed(engine, sequence)
    return sequence.logits()[-1]


def test_a_loaded_sequence_continues_bit_for_bit(model, tmp_path):
    path = tmp_path / "chat.kv"
    with pykvq.Engine(model, ctx=1024, threads=2) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT[:500])
        feed(engine, sequence)
        sequence.save(path)
        expected = logits_of(engine, sequence, TEXT[500:520])
    with pykvq.Engine(model, ctx=2048, seqs=2, threads=2) as engine:  # another engine, another size
        sequence = engine.sequence()
        sequence.sync(TEXT[900:950])
        feed(engine, sequence)
        sequence.load(path)
        assert sequence.tokens == TEXT[:500]
        assert sequence.n_pending == 0
        assert np.array_equal(logits_of(engine, sequence, TEXT[500:520]), expected)


def test_pending_tokens_are_saved_as_pending(model, tmp_path):
    with pykvq.Engine(model, ctx=1024) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT[:100])
        feed(engine, sequence)
        sequence.push(TEXT[100:110])
        sequence.save(tmp_path / "x.kv")
        sequence.rewind(0)
        sequence.load(tmp_path / "x.kv")
        assert sequence.n_pending == 10
        assert sequence.tokens == TEXT[:110]


@pytest.fixture
def saved(model, tmp_path):
    with pykvq.Engine(model, ctx=1024) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT[:200])
        feed(engine, sequence)
        sequence.save(tmp_path / "saved.kv")
    return tmp_path / "saved.kv"


def refuses(model, path, error, match, **options):
    """Loading fails with that sentence, and the sequence stays what it was."""
    with pykvq.Engine(model, **{"ctx": 1024, **options}) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT[300:400])
        feed(engine, sequence)
        with pytest.raises(error, match=match):
            sequence.load(path)
        assert sequence.tokens == TEXT[300:400]
        after = logits_of(engine, sequence, TEXT[:3])
        sequence.sync(TEXT[300:400])
        feed(engine, sequence)
        assert np.abs(logits_of(engine, sequence, TEXT[:3]) - after).max() < 1e-3


def test_flipped_bits_are_found_everywhere(model, saved):
    good = saved.read_bytes()
    rng = np.random.default_rng(3)
    with pykvq.Engine(model, ctx=1024) as engine:
        sequence = engine.sequence()
        positions = {*range(0, 160), len(good) - 1, *(int(p) for p in rng.integers(0, len(good), 60))}
        for position in positions:
            damaged = bytearray(good)
            damaged[position] ^= 1 << int(rng.integers(8))
            saved.write_bytes(damaged)
            with pytest.raises(errors.PykvqError):
                sequence.load(saved)
        saved.write_bytes(good)
        sequence.load(saved)
        assert sequence.tokens == TEXT[:200]


def test_files_that_do_not_fit_are_refused(model, saved, tmp_path):
    good = saved.read_bytes()
    refuses(model, tmp_path / "missing.kv", errors.FileError, "cannot be opened")
    refuses(model, tmp_path, errors.FileError, "is empty or not a file")
    refuses(model, saved, errors.FullError, r"holds 200 tokens, this engine's context 150", ctx=150)
    cut = tmp_path / "cut.kv"
    for n in (1, 50, len(good) // 2, len(good) - 1):
        cut.write_bytes(good[:n])
        refuses(model, cut, errors.FormatError, r"too short|cut short|has \d+ bytes, its header says")
    cut.write_bytes(b"GGUF" + good[4:])
    refuses(model, cut, errors.FormatError, "not a saved sequence")
    cut.write_bytes(good[:8] + b"\x63" + good[9:])
    refuses(model, cut, errors.UnsupportedError, "version 99")


def test_another_model_is_refused(saved, tmp_path):
    with pykvq.Model.open(tiny.write(tmp_path / "other.gguf", n_layer=3)) as other:
        refuses(other, saved, errors.ArgumentError, "another model")


def test_save_to_an_impossible_place_leaves_nothing(model, tmp_path):
    with pykvq.Engine(model, ctx=256) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT[:10])
        feed(engine, sequence)
        with pytest.raises(errors.FileError, match="cannot be written"):
            sequence.save(tmp_path / "no" / "such" / "folder.kv")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kv", "side", "change"),
    [("tier3", "k", 255), ("tier2", "k", None), ("turbo3.5", "k", 255), ("turbo2.5", "k", 0), ("turbo2.5", "v", 0)],
)
def test_tiles_with_wrong_channels_are_refused(kv, side, change, tmp_path):
    """What a tile says about the order of its channels, or which are wide, indexes memory."""
    with pykvq.Model.open(tiny.write(tmp_path / "model.gguf")) as model:
        with pykvq.Engine(model, ctx=1024, kv=kv) as engine:
            sequence = engine.sequence()
            sequence.sync(TEXT[:400])
            feed(engine, sequence)
            sequence.save(tmp_path / "saved.kv")
        good = (tmp_path / "saved.kv").read_bytes()
        assert with_checksum(good) == good
        data, last = bytearray(good), last_byte_of_tile(good, kv, side)
        data[last] = data[last - 1] if change is None else change  # None: a channel is there twice
        (tmp_path / "saved.kv").write_bytes(with_checksum(data))
        message = r"tile 1 of layer 0 is not one that can have been encoded"
        refuses(model, tmp_path / "saved.kv", errors.FormatError, message, kv=kv)


@pytest.mark.parametrize("kv", ["kivi2", "tier2", "turbo2.5"])
def test_files_that_someone_made_up_do_no_harm(model, kv, tmp_path):
    """Refused, or continued without touching what is not theirs: CI runs this with the address sanitizer."""
    rng = np.random.default_rng(4)
    path = tmp_path / "saved.kv"
    with pykvq.Engine(model, ctx=1024, kv=kv, threads=1) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT[:700])
        feed(engine, sequence)
        sequence.push(TEXT[700:705])
        sequence.save(path)
        good, n_loaded = path.read_bytes(), 0
        before_pages = HEADER_BYTES + 2 * LAYER_BYTES + 4 * 705 + 24
        for i in range(200):
            data = bytearray(good)
            for place in rng.integers(32, before_pages if i % 2 else len(good) - 8, 1 + i % 3):
                data[place] = rng.choice([0, 1, 0xFF, int(rng.integers(256))])
            path.write_bytes(with_checksum(data))
            try:
                sequence.load(path)
            except errors.PykvqError:
                continue
            n_loaded += 1
            feed(engine, sequence)
        assert 0 < n_loaded < 200


def test_tiles_that_are_missing_or_in_the_wrong_form_are_refused(tmp_path):
    """Of 1000 tokens in f16, all tiles would leave the tail in one step, and more than the step has room for."""
    path = tmp_path / "saved.kv"
    with pykvq.Model.open(tiny.write(tmp_path / "model.gguf")) as model:
        with pykvq.Engine(model, ctx=1024, batch=1, kv="kivi2") as engine:
            sequence = engine.sequence()
            sequence.sync(TEXT[:1000])
            feed(engine, sequence)
            sequence.save(path)
        good = path.read_bytes()
        forms = HEADER_BYTES + 2 * LAYER_BYTES + 4 * 1000
        raw_pages = bytes(16 * 2 * tiny.N_HEAD_KV * 2 * 64 * tiny.HEAD_DIM * 2)
        path.write_bytes(with_checksum(good[:forms] + bytes(16) + raw_pages + bytes(8)))
        refuses(model, path, errors.FormatError, "tile 1 is not encoded", kv="kivi2")
        first_tile = struct.pack("<I", 2)  # of the layers that see everything
        n_pages = 2 * tiny.N_HEAD_KV * 2 * 64 * tiny.HEAD_DIM * 2
        path.write_bytes(with_checksum(good[:72] + first_tile + good[76 : forms + 14] + good[forms + 16 + n_pages :]))
        refuses(model, path, errors.FormatError, "lacks tiles that its next token sees", kv="kivi2")


def test_a_token_beyond_the_vocabulary_is_refused(model, saved):
    data = bytearray(saved.read_bytes())
    data[HEADER_BYTES + 2 * LAYER_BYTES + 4 * 7 + 3] = 0x7F
    saved.write_bytes(with_checksum(data))
    refuses(model, saved, errors.FormatError, r"token 7 is \d+, the vocabulary has ids 0 to 159")
