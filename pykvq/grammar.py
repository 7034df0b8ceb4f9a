"""Structured output: which tokens a JSON schema, a regular expression or a grammar allows next. By llguidance."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import ArgumentError, FileError, FormatError, UnsupportedError
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from llguidance import LLMatcher, LLTokenizer

JSONSchema: TypeAlias = str | Mapping[str, Any]  # a string is the schema as JSON

# White space between JSON tokens: none, a space, or a new line with its indentation. Without a limit a small model may
# never come to an end.
_WHITE_SPACE = r"( |\n {0,32})"

_vocabularies: weakref.WeakKeyDictionary[Tokenizer, LLTokenizer] = weakref.WeakKeyDictionary()


class Matcher:
    """Follows an answer through what it must match, all of it from its beginning to its end. For one answer.

    Args:
        tokenizer: of the model.
        json_schema: the answer is JSON that this schema allows.
        regex: the answer is matched by this regular expression (the syntax of Rust's regex, without look-around).
        grammar: the answer is in the language of this Lark grammar, from its rule `start`.

    Raises:
        ArgumentError: not exactly one of the three, it is malformed, or nothing can meet it.
        UnsupportedError: llguidance is not installed, or does not know a keyword of the schema.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        json_schema: JSONSchema | None = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> None:
        given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
        named = [(name, value) for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise ArgumentError(f"structured output: expected one of {', '.join(given)}, got {len(named)}")
        self._what, value = named[0]
        vocabulary = _vocabulary(tokenizer)
        self._matcher: LLMatcher = _matcher(vocabulary, self._what, value)
        self._check()

    def mask(self) -> npt.NDArray[np.uint32]:
        """The tokens that may come next, for `Sampler.allow`: (n_words), bit t % 32 of word t // 32 is token t."""
        import numpy as np

        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        self._check()
        return mask

    def push(self, token: int) -> None:
        """The token that was drawn. One that the mask does not have is an error."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether nothing more can come."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            message = self._matcher.get_error()
            kind = UnsupportedError if message.startswith("Unimplemented") else ArgumentError
            raise kind(f"{self._what}: {_one_line(message)}")


def _matcher(vocabulary: LLTokenizer, what: str, value: Any) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    if what == "json_schema":
        grammar = LLMatcher.grammar_from_json_schema(_schema_text(value), {"whitespace_pattern": _WHITE_SPACE})
    elif what == "regex":
        grammar = LLMatcher.grammar_from_regex(value)
    else:
        grammar = LLMatcher.grammar_from_lark(value)
    return LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))


def _schema_text(schema: JSONSchema) -> str:
    try:
        value: object = json.loads(schema) if isinstance(schema, str) else schema
    except ValueError as error:
        raise ArgumentError(f"json_schema: it is not JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise ArgumentError("json_schema: it is not an object; {} allows any JSON")
    return json.dumps(value)


def read_constraint(name: str, text: str) -> str:
    """What a user gives for an argument of `Matcher`: an expression; a schema, or its file; the file of a grammar.

    Raises:
        FileError: the file cannot be read.
    """
    if name == "regex" or (name == "json_schema" and text.lstrip().startswith("{")):
        return text
    try:
        return Path(text).expanduser().read_text("utf-8")
    except OSError as error:
        raise FileError(f"{text}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{text}: not UTF-8 text, byte {error.start} is 0x{error.object[error.start]:02x}") from None


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = weakref.ref(tokenizer)  # llguidance keeps this, and we keep llguidance's by the tokenizer
        self.eos_token_id = min(tokenizer.eog_ids)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
        self.special_token_ids = sorted(tokenizer.special_tokens.values())

    def __call__(self, text: str | bytes) -> list[int]:
        tokenizer = self._tokenizer()
        return [] if tokenizer is None else tokenizer.encode(text, add_bos=False)


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    """The vocabulary in llguidance's form, made once."""
    if tokenizer not in _vocabularies:
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            raise UnsupportedError('structured output needs llguidance: pip install "pykvq[grammar]"') from None
        if not tokenizer.eog_ids:
            raise UnsupportedError("structured output: the vocabulary has no token that ends a text")
        _vocabularies[tokenizer] = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer)), eos_token=sorted(tokenizer.eog_ids)
        )
    return _vocabularies[tokenizer]


def _one_line(message: str) -> str:
    return message.strip().splitlines()[0][:300]
