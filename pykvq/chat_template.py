"""Chat templates: messages to prompt text, by the jinja2 template that a GGUF file carries."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NoReturn, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from .errors import ArgumentError, FormatError
from .fallback_templates import FALLBACKS

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class _Generation(jinja2.ext.Extension):
    """The tag {% generation %}, which marks the assistant's part for training and here passes it through."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: the order of the arguments too, and without jinja2's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class ChatTemplate:
    """A chat template in a sandbox.

    Args:
        source: the jinja2 text.
        special_tokens: text of the tokens that templates refer to, e.g. {"bos_token": "<s>"}.
        fallback: the name of the built-in template that this is; None: it is a model's own, or the caller's.

    Raises:
        FormatError: the template does not parse.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, *, fallback: str | None = None
    ) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = _to_json
        functions: dict[str, Any] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self.fallback = fallback
        try:
            self._template = environment.from_string(source, globals=functions)
        except (jinja2.TemplateError, RecursionError) as error:
            raise FormatError(f"chat template: {error}") from error

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of a GGUF file; without one, a built-in one whose tokens the vocabulary has; else None."""
        if tokenizer.chat_template is not None:
            return cls(tokenizer.chat_template, special_tokens(tokenizer))
        for name, (tokens, source) in FALLBACKS.items():
            if all(tokenizer.token_id(token) is not None for token in tokens):
                return cls(source, special_tokens(tokenizer), fallback=name)
        return None

    @classmethod
    def named(cls, name: str, tokenizer: Tokenizer) -> ChatTemplate:
        """A built-in template by name, for a model whose file has none or a wrong one.

        Raises:
            ArgumentError: there is no such template.
        """
        if name not in FALLBACKS:
            raise ArgumentError(f"chat template {name!r}: expected one of {', '.join(FALLBACKS)}")
        return cls(FALLBACKS[name].source, special_tokens(tokenizer), fallback=name)

    def render(
        self, messages: Iterable[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text of a conversation, for people: `tokens` makes what a model is fed.

        Args:
            messages: {"role": "system" | "user" | "assistant" | "tool", "content": text}, oldest first.
            add_generation_prompt: end with the opening of the assistant's answer.
            variables: what else the template knows: `tools`, `documents`, `enable_thinking=False`, ...

        Raises:
            ArgumentError: the template refuses these messages.
        """
        defaults = {"tools": None, "documents": None}  # transformers defines these two always
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens | defaults | variables,
            )
        except Exception as error:  # the template is a program from the file: it may fail in any way
            raise ArgumentError(f"chat template: {str(error) or type(error).__name__}") from error

    def tokens(self, tokenizer: Tokenizer, messages: Iterable[Mapping[str, Any]], **variables: Any) -> list[int]:
        """The prompt of a conversation as token ids.

        The control tokens are those that the template writes. One that stands in a message, or in any other value,
        stays text: nobody ends their turn by typing how the template ends it.

        Args:
            tokenizer: of the model.
            messages: see `render`, as are the variables.

        Raises:
            ArgumentError: the template refuses these messages.
        """
        # A mark in front of each such name survives what templates do with text: trim, escape, split, quote as JSON
        mark = f"{secrets.randbits(96):029}"

        def guard(text: str) -> str:
            cuts = [0, *tokenizer.control_positions(text), len(text)]
            return mark.join(text[begin:end] for begin, end in pairwise(cuts)) if len(cuts) > 2 else text

        guarded: Any = _map_texts({"messages": list(messages), **variables}, guard)
        pieces = self.render(**guarded).split(mark)
        literal = set(accumulate(len(piece) for piece in pieces[:-1]))
        return tokenizer.encode("".join(pieces), add_bos=False, parse_special=True, literal=literal)


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The texts of the tokens that templates refer to."""
    roles = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "unk_token": tokenizer.unk_id}
    return {role: tokenizer.token_text(i) for role, i in roles.items() if i is not None}


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of nested dicts and lists with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {_map_texts(key, change): _map_texts(item, change) for key, item in items}
    if isinstance(value, list | tuple):
        return [_map_texts(item, change) for item in cast("list[Any]", value)]
    return value
