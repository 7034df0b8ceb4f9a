"""Whatever the metadata say, the answer is a tokenizer or one sentence."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvq.errors import FormatError, PykvqError, UnsupportedError
from pykvq.tokenizer import Tokenizer

from . import reference
from .test_sentencepiece import metadata_of, train

KEYS = ["model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "add_bos_token", "add_space_prefix"]


@pytest.fixture(scope="module")
def byte_level():
    return reference.ByteLevelReference("gpt-2").metadata()


@pytest.fixture(scope="module")
def sentencepiece():
    return metadata_of(train("llama"), "llama")


def refused(metadata, message, **changes):
    metadata = copy.deepcopy(metadata)
    for key, value in changes.items():
        metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(FormatError, match=message) as error:
        Tokenizer.from_metadata(metadata)
    assert "\n" not in str(error.value)


def test_nothing_at_all():
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.tokens: the file has no vocabulary"):
        Tokenizer.from_metadata({})


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv", "gemma4", "no_vocab", ""])
def test_unknown_model(byte_level, model):
    with pytest.raises(UnsupportedError, match=f"'{model}' is not supported; known are gpt2"):
        Tokenizer.from_metadata(byte_level | {"tokenizer.ggml.model": model})


def test_wrong_types(byte_level, sentencepiece):
    refused(byte_level, r"tokenizer\.ggml\.model: expected a string, found an integer", model=1)
    refused(byte_level, r"tokenizer\.ggml\.model: missing", model=None)
    refused(byte_level, r"tokenizer\.ggml\.tokens: expected an array, found a string", tokens="abc")
    refused(byte_level, r"tokens: expected an array whose elements are a string, found an integer", tokens=[1, 2])
    refused(byte_level, r"merges: expected an array whose elements are a string, found an array", merges=[["a", "b"]])
    refused(byte_level, r"bos_token_id: expected an integer, found true or false", bos_token_id=True)
    refused(byte_level, r"add_bos_token: expected true or false, found an integer", add_bos_token=1)
    refused(sentencepiece, r"scores: expected an array whose elements are a float or an integer", scores=["x"])


def test_lengths(byte_level, sentencepiece):
    n_vocab = len(sentencepiece["tokenizer.ggml.tokens"])
    refused(byte_level, "the file has no vocabulary", tokens=[])
    refused(byte_level, "token_type: 2 entries for a vocabulary of", token_type=[1, 1])
    refused(sentencepiece, f"scores: 3 entries for a vocabulary of {n_vocab} tokens", scores=[0.0, 1.0, 2.0])
    refused(sentencepiece, "scores: missing", scores=None)


def test_duplicates(byte_level):
    tokens = [*byte_level["tokenizer.ggml.tokens"], "twice", "once", "twice"]
    types = [1] * len(tokens)
    n = len(tokens)
    refused(byte_level, f"tokens: tokens {n - 3} and {n - 1} are both 'twice'", tokens=tokens, token_type=types)


def test_empty_tokens_are_holes(byte_level):
    metadata = copy.deepcopy(byte_level)
    metadata["tokenizer.ggml.tokens"] += ["", ""]
    metadata["tokenizer.ggml.token_type"] += [4, 3]
    tokenizer = Tokenizer.from_metadata(metadata)
    assert max(tokenizer.encode("any text", parse_special=True)) < tokenizer.n_vocab - 2


def test_ids_out_of_range(byte_level):
    n_vocab = len(byte_level["tokenizer.ggml.tokens"])
    for key in ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id"):
        for token_id in (n_vocab, 2**32 - 2, -2):
            refused(byte_level, f"{key}: {token_id} is outside the vocabulary of {n_vocab} tokens", **{key: token_id})


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ("nospace", "expected two tokens with a space between"),
        ("", "expected two tokens with a space between"),
        ("a b c", "expected two tokens with a space between"),
        (" a", "'' is not in the vocabulary"),
        ("a ", "'' is not in the vocabulary"),
        ("zzz q", "'zzz' is not in the vocabulary"),
        ("q zzz", "'zzz' is not in the vocabulary"),
        ("q z", "'qz' is not in the vocabulary"),
        ("\udcff a", "is not in the vocabulary"),
        ("a" * 5000 + " b", "is not in the vocabulary"),
    ],
)
def test_bad_merges(byte_level, merge, message):
    merges = byte_level["tokenizer.ggml.merges"]
    refused(byte_level, f"merges: entry {len(merges)} is .*{message}", merges=[*merges, merge])


def test_no_merges(byte_level):
    refused(byte_level, "merges: missing", merges=[])
    refused(byte_level, "merges: missing", merges=None)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats() | st.text(max_size=5) | st.just("\udc80"),
    lambda values: st.lists(values, max_size=6),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_metadata(byte_level, sentencepiece, data):
    metadata = copy.deepcopy(byte_level if data.draw(st.booleans()) else sentencepiece)
    for key in data.draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3)):
        name = f"tokenizer.ggml.{key}"
        value = metadata.get(name)
        if isinstance(value, list) and value and data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(value) - 1))
            value[at] = data.draw(VALUES)
        else:
            metadata[name] = data.draw(VALUES)
    try:
        tokenizer = Tokenizer.from_metadata(metadata)
        tokenizer.decode(tokenizer.encode("Hello, <s> w\u00f6rld 123 \U0001f680", parse_special=True))
    except PykvqError as error:
        assert "\n" not in str(error)
