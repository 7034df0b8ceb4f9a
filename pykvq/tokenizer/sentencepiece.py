"""SentencePiece's BPE (`tokenizer.ggml.model` = llama): of all neighbours whose union is a token, join those with the
best score, until none are left. Characters that are no token become their UTF-8 bytes.

The library's BPE ranks pairs, not their union, and so breaks ties in runs like "=====" differently; hence the loop
below. It stays fast because it sees one word at a time, and remembers words.
"""

from __future__ import annotations

import re
from functools import lru_cache
from heapq import heapify, heappop, heappush

from ..errors import ArgumentError, FormatError
from .vocabulary import TokenType, Vocabulary

_SPACE = "\u2581"  # stands for a space in the text of tokens
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_WORD = re.compile(f"{_SPACE}+[^{_SPACE}]*|[^{_SPACE}]+")
_LONG = 64  # characters of a word that is not remembered


class SentencePieceBPE:
    """Encodes text without special tokens, and gives the bytes of a token."""

    kind = "SentencePiece BPE"
    add_bos = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        if not vocabulary.scores:
            raise FormatError("tokenizer.ggml.scores: missing, but the vocabulary is SentencePiece BPE")
        self.space_prefix = vocabulary.add_space_prefix is not False
        self._vocabulary = vocabulary
        self._byte_ids = _byte_ids(vocabulary)
        self._unknown_id = vocabulary.token_ids.get("unknown", vocabulary.ids.get("<unk>"))
        self._pieces = _mergeable(vocabulary)
        # no token reaches over the start of a word, so words can be encoded one by one
        whole_words = not re.search(f"[^{_SPACE}\n]{_SPACE}", "\n".join(self._pieces))
        self._words = _WORD.findall if whole_words else _one_word
        self._merge_cached = lru_cache(1 << 15)(self._merge)

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text."""
        ids: list[int] = []
        for word in self._words(text.replace(" ", _SPACE)):
            ids += self._merge_cached(word) if len(word) <= _LONG else self._merge(word)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for."""
        text = self._vocabulary.tokens[token_id]
        if self._vocabulary.types[token_id] == TokenType.BYTE:
            byte = _BYTE_TOKEN.fullmatch(text)
            if byte:
                return bytes([int(byte[1], 16)])
        return text.replace(_SPACE, " ").encode("utf-8", "surrogateescape")

    def _merge(self, word: str) -> tuple[int, ...]:
        pieces = list(word)  # a piece that was joined to its left neighbour is ""
        n = len(pieces)
        left, right = list(range(-1, n - 1)), list(range(1, n + 1))  # index of each piece's neighbours; -1, n: none
        ids, scores = self._pieces, self._vocabulary.scores

        def candidate(i: int, j: int) -> tuple[float, int, int, int] | None:
            token_id = ids.get(pieces[i] + pieces[j])
            return None if token_id is None else (-scores[token_id], i, j, len(pieces[i]) + len(pieces[j]))

        queue = [found for i in range(n - 1) if (found := candidate(i, i + 1))]
        heapify(queue)  # best score first, then leftmost
        while queue:
            _, i, j, length = heappop(queue)
            if not pieces[i] or not pieces[j] or len(pieces[i]) + len(pieces[j]) != length:
                continue  # one of them has changed since
            pieces[i] += pieces[j]
            pieces[j] = ""
            after = right[i] = right[j]
            if after < n:
                left[after] = i
                if found := candidate(i, after):
                    heappush(queue, found)
            if left[i] >= 0 and (found := candidate(left[i], i)):
                heappush(queue, found)
        return self._ids_of([piece for piece in pieces if piece])

    def _ids_of(self, pieces: list[str]) -> tuple[int, ...]:
        ids: list[int] = []
        for piece in pieces:
            token_id = self._pieces.get(piece)
            if token_id is not None:
                ids.append(token_id)
            elif self._byte_ids:
                ids += [self._byte_ids[byte] for byte in piece.encode("utf-8", "surrogateescape")]
            elif self._unknown_id is None:
                raise ArgumentError(
                    f"text: {piece!r} has no token in this vocabulary, which has no unknown token either"
                )
            elif not ids or ids[-1] != self._unknown_id:  # one for all that follow each other
                ids.append(self._unknown_id)
        return tuple(ids)


def _one_word(text: str) -> list[str]:
    return [text]


def _mergeable(vocabulary: Vocabulary) -> dict[str, int]:
    """Tokens that text may become; all others need a special match, or are fallbacks."""
    pieces = dict(vocabulary.ids)
    others = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.UNUSED, TokenType.BYTE)
    for token_id in vocabulary.of_type(*others):
        del pieces[vocabulary.tokens[token_id]]
    return pieces


def _byte_ids(vocabulary: Vocabulary) -> list[int] | None:
    """Token ids of the 256 bytes, or None if some have none."""
    ids = [vocabulary.ids.get(f"<0x{byte:02X}>") for byte in range(256)]
    found = [token_id for token_id in ids if token_id is not None]
    return found if len(found) == 256 else None
