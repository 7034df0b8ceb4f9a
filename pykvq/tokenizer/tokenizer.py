"""The public tokenizer."""

from __future__ import annotations

import codecs
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import cached_property

from ..errors import ArgumentError, FormatError, UnsupportedError
from .bytelevel import ByteLevelBPE
from .sentencepiece import SentencePieceBPE
from .special import SpecialMatcher, end_token_ids, stripped_after
from .vocabulary import TokenType, Vocabulary, read_vocabulary

_ALGORITHMS = {"gpt2": ByteLevelBPE, "llama": SentencePieceBPE}


class Tokenizer:
    """Text to token ids and back, as the model was trained with.

    Attributes:
        kind: the algorithm, for people.
        bos_id: the token that begins a text, or None.
        eos_id: the token that ends a text, or None.
        unk_id: the token for what cannot be expressed, or None.
        eog_ids: all tokens that end a generation.
        add_bos: whether the model wants `bos_id` in front of a text.
        add_eos: whether the model wants `eos_id` behind a text.
        chat_template: the file's jinja2 template, or None.
        special_tokens: text to id of the control tokens (matched with `parse_special` only) and of the user-defined
            tokens (always matched).
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        if vocabulary.model not in _ALGORITHMS:
            raise UnsupportedError(
                f"tokenizer.ggml.model: {vocabulary.model!r} is not supported; "
                "known are gpt2 (byte-level BPE) and llama (SentencePiece BPE)"
            )
        self._vocabulary = vocabulary
        self._algorithm = _ALGORITHMS[vocabulary.model](vocabulary)
        self.kind = self._algorithm.kind
        self.bos_id = vocabulary.token_ids.get("bos")
        self.eos_id = vocabulary.token_ids.get("eos")
        self.eog_ids = end_token_ids(vocabulary)
        self.unk_id = vocabulary.token_ids.get("unknown")
        self.chat_template = vocabulary.chat_template
        default_add_bos = self._algorithm.add_bos and self.bos_id is not None
        self.add_bos = default_add_bos if vocabulary.add_bos is None else vocabulary.add_bos
        self.add_eos = bool(vocabulary.add_eos)
        self._control: frozenset[int] = self.eog_ids.union(vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN))
        self._special = self._control.union(vocabulary.of_type(TokenType.USER_DEFINED))
        self.special_tokens: Mapping[str, int] = {vocabulary.tokens[i]: i for i in sorted(self._special)}
        for wanted, role, token_id in (self.add_bos, "bos", self.bos_id), (self.add_eos, "eos", self.eos_id):
            if wanted and token_id is None:
                raise FormatError(
                    f"tokenizer.ggml.{role}_token_id: missing, but tokenizer.ggml.add_{role}_token is set"
                )

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read the tokenizer of a GGUF file; one that holds a vocabulary and no weights will do."""
        from ..gguf import GGUFFile

        with GGUFFile.open(path) as file:
            return cls.from_metadata(file.metadata)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """Build the tokenizer that a GGUF file's metadata describes.

        Raises:
            FormatError: the metadata contradict themselves or lack something.
            UnsupportedError: an unknown tokenizer or pre-tokenizer.
        """
        return cls(read_vocabulary(metadata))

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return self._vocabulary.n_vocab

    @property
    def token_list(self) -> list[str]:
        """All tokens as the vocabulary spells them, by id."""
        return list(self._vocabulary.tokens)

    def encode(
        self,
        text: str | bytes,
        *,
        add_bos: bool | None = None,
        parse_special: bool = False,
        literal: Container[int] = (),
    ) -> list[int]:
        """Token ids of a text.

        Args:
            text: a string, or bytes that should be UTF-8; bytes that are not become byte tokens.
            add_bos: True puts `bos_id` in front, False leaves the text as it is, None does what the file says, which
                may also mean `eos_id` at the end.
            parse_special: whether control tokens written in the text become tokens. Leave it off for text that is not
                your own: it could pretend to be another speaker.
            literal: positions in the text at which none becomes one all the same, see `control_positions`.
        """
        as_file = add_bos is None
        ids = [self._require_bos()] if (self.add_bos if as_file else add_bos) else []
        after_special = True
        for part in self._matcher(parse_special).split(_to_str(text), literal):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._algorithm.encode(f" {part}" if self._algorithm.space_prefix and after_special else part)
            after_special = isinstance(part, int)
        if as_file and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def control_positions(self, text: str) -> list[int]:
        """Positions in a text at which the name of a control token begins."""
        return list(self._control_only.starts(text))

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of token ids. Bytes that are not UTF-8 show as U+FFFD; `decode_bytes` keeps them.

        Args:
            ids: token ids.
            skip_special: leave control tokens out of the text.
        """
        return self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = False) -> bytes:
        """The bytes of token ids."""
        return b"".join(self._pieces(ids, skip_special))

    def stream(self, *, after: int | None = None, skip_special: bool = False) -> TokenStream:
        """A decoder that takes one token at a time.

        Args:
            after: the token before the first one. A SentencePiece model's first word brings a space along that is not
                text at the start, or after a special token, but is text behind other text.
            skip_special: leave control tokens out of the text.
        """
        return TokenStream(self, after, skip_special)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        self._check_id(token_id)
        return self._algorithm.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """A token as the vocabulary spells it."""
        self._check_id(token_id)
        return self._vocabulary.tokens[token_id]

    def token_id(self, text: str) -> int | None:
        """The id of the token that the vocabulary spells like this, or None."""
        return self._vocabulary.ids.get(text)

    def piece(self, token_id: int, after: int | None, skip_special: bool) -> bytes:
        """The bytes that a token adds to a text in which it follows the token `after`."""
        data = self.token_bytes(token_id)
        if skip_special and token_id in self._control:
            return b""
        at_start = after is None or after in self._special
        return data[1:] if self._algorithm.space_prefix and at_start and data[:1] == b" " else data

    def _pieces(self, ids: Iterable[int], skip_special: bool) -> Iterator[bytes]:
        after = None
        for token_id in ids:
            yield self.piece(token_id, after, skip_special)
            after = token_id

    def _matcher(self, parse_special: bool) -> SpecialMatcher:
        return self._all_special if parse_special else self._user_defined

    @cached_property
    def _user_defined(self) -> SpecialMatcher:
        return self._matcher_of(self._special - self._control)

    @cached_property
    def _all_special(self) -> SpecialMatcher:
        return self._matcher_of(self._special)

    @cached_property
    def _control_only(self) -> SpecialMatcher:
        return self._matcher_of(self._control)

    def _matcher_of(self, ids: Iterable[int]) -> SpecialMatcher:
        tokens = ((self._vocabulary.tokens[i], i) for i in ids)
        return SpecialMatcher(tokens, stripped_after(self._vocabulary), self._control)

    def _require_bos(self) -> int:
        if self.bos_id is None:
            raise ArgumentError("add_bos: this vocabulary has no token that begins a text")
        return self.bos_id

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.n_vocab:
            raise ArgumentError(f"token id: {token_id} is outside the vocabulary of {self.n_vocab} tokens")

    def __repr__(self) -> str:
        return f"<Tokenizer: {self.kind}, {self.n_vocab} tokens>"


class TokenStream:
    """Decodes one token at a time, and holds back bytes until their character is whole.

    What `push` and `finish` return, put together, is what `Tokenizer.decode` returns.
    """

    def __init__(self, tokenizer: Tokenizer, after: int | None, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._after = after
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is complete now; often empty in the middle of a character."""
        data = self._tokenizer.piece(token_id, self._after, self._skip_special)
        self._after = token_id
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What is left: U+FFFD if the tokens ended inside a character, else nothing."""
        return self._utf8.decode(b"", final=True)


def _to_str(text: str | bytes) -> str:
    """Text with bytes that are not UTF-8 as lone surrogates ("surrogateescape")."""
    if isinstance(text, bytes):
        return text.decode("utf-8", "surrogateescape")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ArgumentError(f"text: character {error.start} is half of a surrogate pair") from error
    return text
