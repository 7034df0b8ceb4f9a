"""Byte-level BPE gives the ids of the library's own tokenizer, and gives every byte back."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvq.errors import ArgumentError
from pykvq.tokenizer import Tokenizer

from . import reference
from .test_pretokenizers import TEXTS
from .texts import CORPUS, TRICKY


@pytest.fixture(scope="module", params=reference.ROWS)
def pair(request):
    original = reference.ByteLevelReference(request.param)
    return original, Tokenizer.from_metadata(original.metadata())


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_metadata(reference.ByteLevelReference("gpt-2").metadata())


def test_ids(pair):
    original, tokenizer = pair
    for text in [*TRICKY, *CORPUS.splitlines(), CORPUS, "".join(TRICKY)]:
        assert tokenizer.encode(text) == original.ids(text), repr(text)


def test_random_text(pair):
    original, tokenizer = pair

    @settings(max_examples=60, deadline=None)
    @given(TEXTS)
    def check(text):
        ids = tokenizer.encode(text)
        assert ids == original.ids(text)
        normalized = unicodedata.normalize("NFC", text) if original.row in reference.NFC_ROWS else text
        assert tokenizer.decode(ids) == normalized

    check()


@settings(max_examples=300, deadline=None)
@given(
    data=st.binary(max_size=40) | st.lists(st.sampled_from([b"\xf0\x9f\x9a", b"\xe4\xb8", b"\xff", b"ab ", b"\x80"]))
)
def test_bytes_survive(tokenizer, data):
    data = data if isinstance(data, bytes) else b"".join(data)
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data


def test_invalid_utf8_is_merged_like_other_bytes(tokenizer):
    assert len(tokenizer.encode(b"\xf0\x9f")) == 1  # how most emoji begin
    word = "the quick"
    parts = [tokenizer.encode(part) for part in (word, b"\xf0\x9f", word)]
    assert tokenizer.encode(b"the quick\xf0\x9fthe quick") == [token_id for part in parts for token_id in part]


def test_text_and_its_bytes_are_the_same(tokenizer):
    for text in TRICKY:
        assert tokenizer.encode(text) == tokenizer.encode(text.encode())


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(ArgumentError, match="character 2 is half of a surrogate pair"):
        tokenizer.encode("ab\ud83d")


def test_a_byte_without_token_is_named():
    metadata = reference.ByteLevelReference("gpt-2").metadata()
    at = metadata["tokenizer.ggml.tokens"].index("\u0104")  # stands for byte 4
    metadata["tokenizer.ggml.tokens"][at] = "<gone>"
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.decode(tokenizer.encode("a\x05b")) == "a\x05b"
    with pytest.raises(ArgumentError, match="byte 0x04 has no token"):
        tokenizer.encode("a\x04b")


def test_tokens_outside_the_byte_alphabet_are_plain_text():
    metadata = reference.ByteLevelReference("gpt-2").metadata()
    metadata["tokenizer.ggml.tokens"] += ["\U0001f680 x", "bad\udcff"]
    metadata["tokenizer.ggml.token_type"] += [1, 1]
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.token_bytes(tokenizer.n_vocab - 2) == "\U0001f680 x".encode()
    assert tokenizer.token_bytes(tokenizer.n_vocab - 1) == b"bad\xff"
    assert tokenizer.decode(tokenizer.encode(CORPUS)) == CORPUS
