"""Tokens that are matched in text as a whole, before any merging, and the tokens that end a generation."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator

from .vocabulary import TokenType, Vocabulary

# Texts of tokens that end a turn, whatever role the file gives them ...
_END_TEXTS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
# ... and those that are ordinary text in some vocabularies: only where the file does not type them as normal
_END_TEXTS_IF_SPECIAL = ("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]")
_END_ROLES = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")

_WHITESPACE = re.compile(r"[ \t\n\v\f\r]*")


def end_token_ids(vocabulary: Vocabulary) -> frozenset[int]:
    """Ids of the tokens that end a generation."""
    ids, types = vocabulary.ids, vocabulary.types
    found = {vocabulary.token_ids[role] for role in _END_ROLES if role in vocabulary.token_ids}
    found |= {ids[text] for text in _END_TEXTS if text in ids}
    found |= {ids[text] for text in _END_TEXTS_IF_SPECIAL if text in ids and types[ids[text]] != TokenType.NORMAL}
    if "<|return|>" in ids and "<|call|>" in ids and "<|end|>" in ids:  # harmony: <|end|> only ends a message of many
        found.discard(ids["<|end|>"])
    return frozenset(found)


def stripped_after(vocabulary: Vocabulary) -> frozenset[int]:
    """Special tokens that swallow the whitespace behind them; GGUF does not say, so it goes by the model's name."""
    if not re.search("phi-?3", vocabulary.name.lower()):
        return frozenset()
    kept = {vocabulary.ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
    return frozenset(vocabulary.of_type(TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)) - kept


class SpecialMatcher:
    """Finds tokens in text: the leftmost match, and of several there the longest.

    Args:
        tokens: their texts and ids.
        stripped: ids of those that swallow the whitespace behind them.
        control: ids of those that `split` does not find at the positions it is told.
    """

    def __init__(
        self,
        tokens: Iterable[tuple[str, int]],
        stripped: frozenset[int] = frozenset(),
        control: frozenset[int] = frozenset(),
    ) -> None:
        self._ids = dict(tokens)
        self._stripped = stripped
        self._control = control
        self._lengths = _lengths_by_head(self._ids)
        firsts = "".join(sorted({token[0] for token in self._ids}))
        self._first = re.compile(f"[{re.escape(firsts)}]") if firsts else None

    def split(self, text: str, literal: Container[int] = ()) -> Iterator[str | int]:
        """The text in order: token ids, and what lies between them. At literal positions no control token begins."""
        start = position = 0  # start: of the text that is not yet given out
        while self._first and (found := self._first.search(text, position)):
            begin = found.start()
            token = self._longest(text, begin, begin in literal)
            if token is None:
                position = begin + 1
                continue
            if start < begin:
                yield text[start:begin]
            token_id = self._ids[token]
            yield token_id
            start = position = begin + len(token)
            if token_id in self._stripped and (space := _WHITESPACE.match(text, start)):
                start = position = space.end()
        if start < len(text):
            yield text[start:]

    def starts(self, text: str) -> Iterator[int]:
        """Every position at which a token is written, those inside another one included."""
        if self._first:
            found = (match.start() for match in self._first.finditer(text))
            yield from (begin for begin in found if self._longest(text, begin, False) is not None)

    def _longest(self, text: str, begin: int, is_literal: bool) -> str | None:
        lengths = self._lengths.get(text[begin : begin + 2]) or self._lengths.get(text[begin], ())
        candidates = (text[begin : begin + length] for length in lengths)
        found = (token for token in candidates if token in self._ids)
        return next((token for token in found if not (is_literal and self._ids[token] in self._control)), None)


def _lengths_by_head(tokens: Iterable[str]) -> dict[str, list[int]]:
    """Lengths of the tokens that begin with given two characters, longest first."""
    lengths: dict[str, set[int]] = {}
    for token in tokens:
        lengths.setdefault(token[:2], set()).add(len(token))
    for head in lengths:
        if head[0] in lengths:
            lengths[head].add(1)
    return {head: sorted(found, reverse=True) for head, found in lengths.items()}
