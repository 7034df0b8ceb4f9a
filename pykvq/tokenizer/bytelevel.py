"""Byte-level BPE (GPT-2 and its descendants): text is cut into words, the bytes of a word are merged pair by pair."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from ..errors import ArgumentError, FormatError
from .pretokenizers import PreTokenizer, find_pre_tokenizer
from .vocabulary import TokenType, Vocabulary

_INVALID_UTF8 = re.compile("([\udc80-\udcff]+)")  # bytes that are not UTF-8, as "surrogateescape" shows them
_SURROGATE = re.compile("[\ud800-\udfff]")


def _byte_characters() -> str:
    """The printable character that stands for each byte in the text of tokens and merges."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = {byte: byte for byte in printable} | {byte: 256 + i for i, byte in enumerate(others)}
    return "".join(chr(codes[byte]) for byte in range(256))


_CHARACTERS = _byte_characters()
_BYTES = {character: byte for byte, character in enumerate(_CHARACTERS)}


class ByteLevelBPE:
    """Encodes text without special tokens, and gives the bytes of a token."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        row = find_pre_tokenizer(vocabulary.pre)
        self.kind = f"byte-level BPE, {vocabulary.pre}"
        self.add_bos = row.add_bos
        self.space_prefix = False
        self._vocabulary = vocabulary
        self._missing = _missing_bytes(vocabulary)
        self._model = _build_model(vocabulary, row.ignore_merges)
        self._tokenizer = Tokenizer(self._model)
        if row.nfc:
            self._tokenizer.normalizer = NFC()
        self._tokenizer.pre_tokenizer = word_splitter(row)

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text."""
        ids: list[int] = []
        for i, part in enumerate(_INVALID_UTF8.split(text)):
            data = part.encode("utf-8", "surrogateescape")
            self._check_bytes(data)
            if i % 2 == 0:  # between invalid bytes
                ids += self._tokenizer.encode(part, add_special_tokens=False).ids
            else:  # no word pattern applies to these
                ids += [token.id for token in self._model.tokenize("".join(_CHARACTERS[byte] for byte in data))]
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for."""
        text = self._vocabulary.tokens[token_id]
        if self._vocabulary.types[token_id] in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN):
            return text.encode("utf-8", "surrogateescape")
        try:
            return bytes([_BYTES[character] for character in text])
        except KeyError:  # added to the vocabulary as plain text
            return text.encode("utf-8", "surrogateescape")

    def _check_bytes(self, data: bytes) -> None:
        missing = self._missing.intersection(data)
        if missing:
            raise ArgumentError(f"text: byte 0x{min(missing):02x} has no token in this vocabulary")


def word_splitter(row: PreTokenizer) -> Sequence:
    """The library's form of a row."""
    return Sequence(
        [*_splits(row.splits), ByteLevel(add_prefix_space=False, use_regex=False), *_splits(row.byte_splits)]
    )


def _splits(patterns: Iterable[str]) -> list[Split]:
    return [Split(Regex(pattern), "isolated") for pattern in patterns]


def _missing_bytes(vocabulary: Vocabulary) -> frozenset[int]:
    """Bytes without a token of their own. Mostly those that UTF-8 never uses; the library would drop them silently."""
    ids, types = vocabulary.ids, vocabulary.types
    return frozenset(
        byte
        for byte, character in enumerate(_CHARACTERS)
        if character not in ids or types[ids[character]] == TokenType.USER_DEFINED
    )


def _build_model(vocabulary: Vocabulary, ignore_merges: bool) -> BPE:
    ids, merges = vocabulary.ids, vocabulary.merges
    if not merges:
        raise FormatError("tokenizer.ggml.merges: missing, but the vocabulary is byte-level BPE")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    if not all(left + right in ids for left, right in pairs):  # checked here: the library panics on some of these
        raise _merge_error(vocabulary)
    try:
        return BPE(_valid_unicode(ids), pairs, ignore_merges=ignore_merges)
    except Exception as error:
        raise _merge_error(vocabulary) from error


def _valid_unicode(ids: dict[str, int]) -> dict[str, int]:
    """The tokens that the library can hold; no text can become one of the others."""
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        return {token: token_id for token, token_id in ids.items() if not _SURROGATE.search(token)}
    return ids


def _merge_error(vocabulary: Vocabulary) -> FormatError:
    for i, merge in enumerate(vocabulary.merges):
        parts = merge.split(" ")
        if len(parts) != 2:
            return FormatError(
                f"tokenizer.ggml.merges: entry {i} is {merge!r}, expected two tokens with a space between"
            )
        for token in (*parts, "".join(parts)):
            if token not in vocabulary.ids:
                return FormatError(
                    f"tokenizer.ggml.merges: entry {i} is {merge!r}, but {token!r} is not in the vocabulary"
                )
    return FormatError("tokenizer.ggml.merges: the merges do not fit the vocabulary")
