"""The tokenizer part of a GGUF file's metadata. Whatever the file says, the answer is a Vocabulary or a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, TypeVar, cast

from ..errors import FormatError

_Scalar = TypeVar("_Scalar", str, int, bool)

_NO_TOKEN = (-1, 0xFFFFFFFF)  # how converters write "there is none"
_KIND_NAMES: dict[type, str] = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    float: "a float",
    list: "an array",
}


class TokenType(IntEnum):
    """GGUF's `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """What a file says about its tokens. Lists are indexed by token id."""

    model: str  # tokenizer.ggml.model
    pre: str  # tokenizer.ggml.pre
    name: str  # general.name
    tokens: list[str]
    ids: dict[str, int]
    types: list[int]
    scores: list[float]  # empty if the file has none
    merges: list[str]  # "left right", best first
    token_ids: dict[str, int]  # of the roles that the file names: "bos", "eos", "fim_pad", ...
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None
    chat_template: str | None

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @cached_property
    def _not_normal(self) -> list[int]:
        return [token_id for token_id, token_type in enumerate(self.types) if token_type != 1]

    def of_type(self, *types: TokenType) -> list[int]:
        """Ids of the tokens of these types, which must not be NORMAL."""
        return [token_id for token_id in self._not_normal if self.types[token_id] in types]


def read_vocabulary(metadata: Mapping[str, object]) -> Vocabulary:
    """Read and check all that the tokenizers need."""
    tokens = _tokens(metadata)
    types = _array(metadata, "tokenizer.ggml.token_type", {int}, at_least=len(tokens))
    return Vocabulary(
        model=_required(metadata, "tokenizer.ggml.model"),
        pre=_scalar(metadata, "tokenizer.ggml.pre", str) or "default",
        name=_scalar(metadata, "general.name", str) or "",
        tokens=tokens,
        ids=_ids(tokens),
        types=types or [TokenType.NORMAL] * len(tokens),
        scores=_array(metadata, "tokenizer.ggml.scores", {float, int}, at_least=len(tokens)),
        merges=_array(metadata, "tokenizer.ggml.merges", {str}),
        token_ids=_token_ids(metadata, len(tokens)),
        add_bos=_scalar(metadata, "tokenizer.ggml.add_bos_token", bool),
        add_eos=_scalar(metadata, "tokenizer.ggml.add_eos_token", bool),
        add_space_prefix=_scalar(metadata, "tokenizer.ggml.add_space_prefix", bool),
        chat_template=_scalar(metadata, "tokenizer.chat_template", str),
    )


def _tokens(metadata: Mapping[str, object]) -> list[str]:
    tokens: list[str] = _array(metadata, "tokenizer.ggml.tokens", {str})
    if not tokens:
        raise FormatError("tokenizer.ggml.tokens: the file has no vocabulary")
    if "" in tokens:  # a hole in the ids; it must not match everywhere
        tokens = [token or f"[EMPTY_{token_id}]" for token_id, token in enumerate(tokens)]
    return tokens


def _ids(tokens: list[str]) -> dict[str, int]:
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) < len(tokens):
        first, again = next((i, ids[token]) for i, token in enumerate(tokens) if ids[token] != i)
        raise FormatError(f"tokenizer.ggml.tokens: tokens {first} and {again} are both {tokens[first]!r}")
    return ids


def _token_ids(metadata: Mapping[str, object], n_vocab: int) -> dict[str, int]:
    roles = ("bos", "eos", "eot", "eom", "unknown", "fim_pad", "fim_rep", "fim_sep")
    found: dict[str, int] = {}
    for role in roles:
        key = f"tokenizer.ggml.{role}_token_id"
        token_id = _scalar(metadata, key, int)
        if token_id is None or token_id in _NO_TOKEN:
            continue
        if not 0 <= token_id < n_vocab:
            raise FormatError(f"{key}: {token_id} is outside the vocabulary of {n_vocab} tokens")
        found[role] = token_id
    return found


def _scalar(metadata: Mapping[str, object], key: str, kind: type[_Scalar]) -> _Scalar | None:
    value = metadata.get(key)
    if value is None:
        return None
    if type(value) is not kind:  # not isinstance: a bool is no token id
        raise FormatError(f"{key}: expected {_KIND_NAMES[kind]}, found {_kind_name(value)}")
    return value


def _required(metadata: Mapping[str, object], key: str) -> str:
    value = _scalar(metadata, key, str)
    if value is None:
        raise FormatError(f"{key}: missing, so the file has no tokenizer")
    return value


def _array(metadata: Mapping[str, object], key: str, kinds: set[type], at_least: int = 0) -> list[Any]:
    """The array at key; empty if there is none."""
    value = metadata.get(key)
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise FormatError(f"{key}: expected an array, found {_kind_name(value)}")
    items = list(cast("Sequence[Any]", value))
    if not set(map(type, items)) <= kinds:
        wrong = next(item for item in items if type(item) not in kinds)
        names = " or ".join(sorted(_KIND_NAMES[kind] for kind in kinds))
        raise FormatError(f"{key}: expected an array whose elements are {names}, found {_kind_name(wrong)}")
    if len(items) < at_least:
        raise FormatError(f"{key}: {len(items)} entries for a vocabulary of {at_least} tokens")
    return items


def _kind_name(value: object) -> str:
    return _KIND_NAMES.get(type(value), type(value).__name__)
