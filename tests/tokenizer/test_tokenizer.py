"""The public class: special tokens, decoding in one go and in a stream, files."""

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvq.errors import ArgumentError, FileError, FormatError
from pykvq.tokenizer import Tokenizer

from . import reference
from .test_sentencepiece import metadata_of, train
from .texts import TRICKY


@pytest.fixture(scope="module")
def byte_level_metadata():
    metadata = reference.ByteLevelReference("smollm").metadata()
    metadata["tokenizer.ggml.tokens"] += [
        "<think>",
        "    ",
        "  ",
        "<thinking>",
        "\u2192",
        "\u2192\u2192\u2192",
        "na\u00efve",
    ]
    metadata["tokenizer.ggml.token_type"] += [4] * 7
    metadata["tokenizer.chat_template"] = "{{ messages }}"
    return metadata


@pytest.fixture(scope="module")
def byte_level(byte_level_metadata):
    return Tokenizer.from_metadata(byte_level_metadata)


@pytest.fixture(scope="module")
def sentencepiece_metadata():
    metadata = metadata_of(train("llama"), "llama")
    metadata["tokenizer.ggml.tokens"] += ["<|user|>", "<|end|>", "<mark>"]
    metadata["tokenizer.ggml.token_type"] += [3, 3, 4]
    metadata["tokenizer.ggml.scores"] += [0.0, 0.0, 0.0]
    return metadata


@pytest.fixture(scope="module")
def sentencepiece(sentencepiece_metadata):
    return Tokenizer.from_metadata(sentencepiece_metadata)


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def test_control_tokens_need_parse_special(byte_level):
    text = "<|im_start|>user\nhi<|im_end|>"
    start, end = byte_level.token_id("<|im_start|>"), byte_level.token_id("<|im_end|>")
    assert not {start, end} & set(byte_level.encode(text))
    assert byte_level.encode(text, parse_special=True) == [start, *byte_level.encode("user\nhi"), end]
    assert byte_level.decode(byte_level.encode(text, parse_special=True)) == text
    assert byte_level.decode(byte_level.encode(text, parse_special=True), skip_special=True) == "user\nhi"


def test_user_defined_tokens_are_always_matched_longest_first(byte_level):
    ids = [byte_level.token_id(text) for text in ("<think>", "<thinking>", "    ", "  ")]
    assert byte_level.encode("<think><thinking>      ") == ids
    one, three = byte_level.token_id("\u2192"), byte_level.token_id("\u2192\u2192\u2192")
    assert byte_level.encode("\u2192" * 5) == [three, one, one]
    assert byte_level.decode(ids, skip_special=True) == "<think><thinking>      "


def test_user_defined_tokens_are_not_spelled_in_bytes(byte_level):
    assert byte_level.encode("na\u00efve") == [byte_level.token_id("na\u00efve")]
    assert byte_level.decode(byte_level.encode("na\u00efve")) == "na\u00efve"


def test_end_of_generation(byte_level, sentencepiece):
    assert {byte_level.token_text(i) for i in byte_level.eog_ids} == {"<|endoftext|>", "<|im_end|>"}
    assert {sentencepiece.token_text(i) for i in sentencepiece.eog_ids} == {"</s>", "<|end|>"}


def test_end_tokens_of_harmony(byte_level_metadata):
    metadata = dict(byte_level_metadata)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<|return|>", "<|call|>", "<|end|>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 3, 3, 3]
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.token_id("<|end|>") not in tokenizer.eog_ids
    assert tokenizer.token_id("<|return|>") in tokenizer.eog_ids


def test_an_html_tag_ends_no_generation(byte_level_metadata):
    metadata = dict(byte_level_metadata)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "</s>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1]
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.token_id("</s>") not in tokenizer.eog_ids
    assert "</s>" not in tokenizer.special_tokens


def test_beginning_and_end_of_text(byte_level_metadata):
    ends = byte_level_metadata | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = Tokenizer.from_metadata(ends)
    text = tokenizer.encode("x", add_bos=False)
    assert tokenizer.encode("x") == [tokenizer.bos_id, *text, tokenizer.eos_id]
    assert tokenizer.encode("x", add_bos=True) == [tokenizer.bos_id, *text]
    assert tokenizer.encode("") == [tokenizer.bos_id, tokenizer.eos_id]
    assert Tokenizer.from_metadata(byte_level_metadata).encode("") == []


def test_who_begins_a_text_when_the_file_does_not_say(byte_level_metadata, sentencepiece_metadata):
    def first(metadata, **changes):
        metadata = {key: value for key, value in metadata.items() if key != "tokenizer.ggml.add_bos_token"}
        tokenizer = Tokenizer.from_metadata(metadata | {f"tokenizer.ggml.{key}": v for key, v in changes.items()})
        return tokenizer.encode("x")[0] == tokenizer.bos_id

    assert not first(byte_level_metadata)
    assert first(byte_level_metadata, pre="llama-bpe")
    assert first(sentencepiece_metadata)
    assert not first(sentencepiece_metadata, bos_token_id=None)


@pytest.mark.parametrize("none", [None, -1, 0xFFFFFFFF])
def test_no_token_for_the_beginning(byte_level_metadata, none):
    metadata = byte_level_metadata | {"tokenizer.ggml.bos_token_id": none}
    with pytest.raises(ArgumentError, match="no token that begins a text"):
        Tokenizer.from_metadata(metadata).encode("x", add_bos=True)
    with pytest.raises(FormatError, match=r"bos_token_id: missing, but tokenizer\.ggml\.add_bos_token is set"):
        Tokenizer.from_metadata(metadata | {"tokenizer.ggml.add_bos_token": True})


def test_space_in_front_of_words(sentencepiece):
    encode = sentencepiece.encode
    assert sentencepiece.decode(encode("one two")[1:]) == "one two"
    assert sentencepiece.decode(encode("  one")[1:]) == "  one"
    chat = "<|user|>hello<|end|>the fox"
    assert sentencepiece.decode(encode(chat, add_bos=False, parse_special=True)) == chat
    assert sentencepiece.decode(encode(chat, parse_special=True), skip_special=True) == "hellothe fox"
    # behind text the space of a word is text; behind a special token it is not
    word = encode("the", add_bos=False)[0]
    assert sentencepiece.token_bytes(word) == b" th"
    assert sentencepiece.stream(after=word).push(word) == " th"
    assert sentencepiece.stream(after=sentencepiece.token_id("<|user|>")).push(word) == "th"
    assert sentencepiece.stream().push(word) == "th"


def test_phi3_strips_whitespace_behind_special_tokens(sentencepiece_metadata):
    tokenizer = Tokenizer.from_metadata(sentencepiece_metadata | {"general.name": "Phi3 mini"})
    plain = Tokenizer.from_metadata(sentencepiece_metadata)
    joined = plain.encode("<|user|>hello", parse_special=True)
    assert tokenizer.encode("<|user|> \n hello", parse_special=True) == joined
    assert plain.encode("<|user|> \n hello", parse_special=True) != joined
    assert tokenizer.encode("<s> x", parse_special=True) == plain.encode("<s> x", parse_special=True)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_stream(tokenizer, data):
    text = data.draw(st.lists(st.sampled_from([*TRICKY, "<|end|>", "<|im_end|>", "\U0001f680", "\u4e2d"])).map("".join))
    some_ids = st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=20)
    ids = tokenizer.encode(text, parse_special=True) + data.draw(some_ids)
    skip_special = data.draw(st.booleans())
    stream = tokenizer.stream(skip_special=skip_special)
    pieces = [stream.push(token_id) for token_id in ids]
    assert all("\ufffd" not in piece for piece in pieces[: len(tokenizer.encode(text, parse_special=True))])
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, skip_special=skip_special)
    raw = tokenizer.decode_bytes(ids, skip_special=skip_special)
    assert raw.decode("utf-8", "replace") == tokenizer.decode(ids, skip_special=skip_special)


def test_stream_holds_back_half_characters(tokenizer):
    ids = tokenizer.encode("\U0001f9ac", add_bos=False)
    assert len(ids) > 1
    stream = tokenizer.stream()
    assert [stream.push(token_id) for token_id in ids] == [""] * (len(ids) - 1) + ["\U0001f9ac"]
    stream = tokenizer.stream()
    assert "".join(stream.push(token_id) for token_id in ids[:-1]) == ""
    assert stream.finish() == "\ufffd"


def test_ids_outside_the_vocabulary(tokenizer):
    for token_id in (-1, tokenizer.n_vocab, 2**40):
        with pytest.raises(ArgumentError, match=f"{token_id} is outside the vocabulary of {tokenizer.n_vocab} tokens"):
            tokenizer.decode([token_id])
        with pytest.raises(ArgumentError):
            tokenizer.stream().push(token_id)


def test_metadata_of_the_chat(byte_level):
    assert byte_level.chat_template == "{{ messages }}"
    assert byte_level.special_tokens["<think>"] == byte_level.token_id("<think>")
    assert byte_level.kind == "byte-level BPE, smollm"


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_vocabulary_only_file(kind, request, tmp_path):
    metadata = request.getfixturevalue(f"{kind}_metadata")
    path = tmp_path / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer, expected = Tokenizer.from_gguf(path), Tokenizer.from_metadata(metadata)
    for text in TRICKY:
        assert tokenizer.encode(text, parse_special=True) == expected.encode(text, parse_special=True)


def test_missing_file(tmp_path):
    with pytest.raises(FileError):
        Tokenizer.from_gguf(tmp_path / "nothing.gguf")
