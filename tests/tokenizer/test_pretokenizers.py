"""Every row cuts text into the words that the published tokenizer cuts it into."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvq.errors import UnsupportedError
from pykvq.tokenizer import Tokenizer
from pykvq.tokenizer.bytelevel import word_splitter
from pykvq.tokenizer.pretokenizers import PRE_TOKENIZERS

from . import reference
from .texts import CORPUS, TRICKY


def characters_since_unicode_3_2():
    """Newer ones may be unknown to one of the two regular expression engines; U+0295 changed its category."""
    known = unicodedata.ucd_3_2_0.category
    return [chr(c) for c in range(0x110000) if c != 0x295 and known(chr(c)) not in ("Cn", "Cs", "Co")]


FRAGMENTS = [
    *"abzABZ019 '\"\n\r\t.,!?-_/\\$+<=>^`|~#()[]{}@%&*:;",
    *"\u00a0\u3000\u00e9\u0300\u00b2\u00bd\u0663\u2167\u01c5\u4e2d\u3042\u30a2\uac00\u0e01\U0001f680\u200d\ufe0f\u2028",
    *"\uff01\u20ac\u0561",
    *("'s", "'LL", "'\u017f", "  ", " \n", "e\u0301", "\u0915\u094d\u0937"),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.sampled_from(characters_since_unicode_3_2()), max_size=24).map("".join)


def words(row, text):
    splitter = word_splitter(PRE_TOKENIZERS[row])
    if PRE_TOKENIZERS[row].nfc:
        text = unicodedata.normalize("NFC", text)
    return [word for word, _ in splitter.pre_tokenize_str(text)]


def test_every_row_has_a_reference():
    assert sorted(PRE_TOKENIZERS) == sorted(reference.ROWS)
    assert {name for name, row in PRE_TOKENIZERS.items() if row.nfc} == reference.NFC_ROWS
    assert {name for name, row in PRE_TOKENIZERS.items() if row.ignore_merges} == reference.IGNORE_MERGES_ROWS


@pytest.mark.parametrize("row", reference.ROWS)
def test_words(row):
    for text in [*TRICKY, *CORPUS.splitlines(), CORPUS, "".join(TRICKY)]:
        assert words(row, text) == reference.words(row, text), repr(text)


@pytest.mark.parametrize("row", reference.ROWS)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_words_of_random_text(row, text):
    assert words(row, text) == reference.words(row, text)


def test_rows_differ_where_they_should():
    assert words("gpt-2", "it's 1234") == ["it", "'s", "\u01201234"]
    assert words("smollm", "it's 12") == ["it", "'s", "\u0120", "1", "2"]
    assert words("llama-bpe", "IT'S 1234") == ["IT", "'S", "\u0120", "123", "4"]
    assert words("qwen2", "12\n\n x") == ["1", "2", "\u010a\u010a", "\u0120x"]
    assert words("gpt-4o", "HTTPServer's") == ["HTTPServer's"]
    assert words("tekken", "fooBar's") == ["foo", "Bar", "'s"]
    assert words("falcon", " 1234$") == ["\u0120", "123", "4", "$"]


@pytest.fixture(scope="module")
def metadata():
    return reference.ByteLevelReference("gpt-2").metadata()


@pytest.mark.parametrize("name", ["no-such-row", "QWEN2", "bert-bge"])
def test_unknown_pre_tokenizer_is_refused_by_name(metadata, name):
    with pytest.raises(UnsupportedError, match=f"unknown pre-tokenizer '{name}'; known are command-r, dbrx, deepseek-"):
        Tokenizer.from_metadata(metadata | {"tokenizer.ggml.pre": name})


def test_missing_pre_tokenizer_is_the_default(metadata):
    del metadata["tokenizer.ggml.pre"]
    assert Tokenizer.from_metadata(metadata).kind == "byte-level BPE, default"
