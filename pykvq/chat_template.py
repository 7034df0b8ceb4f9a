"""Chat templates: messages to prompt text, by the jinja2 template that a GGUF file carries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from .errors import ArgumentError, FormatError

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


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class ChatTemplate:
    """A chat template in a sandbox.

    Args:
        source: the jinja2 text.
        special_tokens: text of the tokens that templates refer to, e.g. {"bos_token": "<s>"}.

    Raises:
        FormatError: the template does not parse.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = _to_json
        functions: dict[str, Any] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        try:
            self._template = environment.from_string(source, globals=functions)
        except jinja2.TemplateError as error:
            raise FormatError(f"chat template: {error}") from error

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of a GGUF file, or None if it has none."""
        if tokenizer.chat_template is None:
            return None
        roles = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        return cls(
            tokenizer.chat_template, {role: tokenizer.token_text(i) for role, i in roles.items() if i is not None}
        )

    def render(
        self, messages: Iterable[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text of a conversation.

        Special tokens, the begin-of-sequence token included, are part of the text: encode it with `add_bos=False` and
        `parse_special=True`.

        Args:
            messages: {"role": "system" | "user" | "assistant", "content": text}, oldest first.
            add_generation_prompt: end with the opening of the assistant's answer.
            variables: what else the template knows, e.g. `enable_thinking=False`.

        Raises:
            ArgumentError: the template refuses these messages.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
                **variables,
            )
        except Exception as error:  # the template is a program from the file: it may fail in any way
            raise ArgumentError(f"chat template: {error}") from error
