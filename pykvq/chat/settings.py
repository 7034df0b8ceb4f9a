"""What /set changes: the options of the sampler, the length of answers, what a full context does."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Any

from ..errors import ArgumentError
from ..model import Model
from ..sampling import Sampler, tokens_with
from .conversation import Conversation

# The options of Sampler that are numbers, with their defaults
_SAMPLER: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(Sampler).parameters.items()
    if name == "seed" or isinstance(parameter.default, int | float)
}
_OVERFLOW = ("drop", "stop")


class Settings:
    """Names and values, applied to a conversation as they change."""

    def __init__(self, conversation: Conversation, **sampler: Any) -> None:
        self._conversation = conversation
        self._sampler = _SAMPLER | sampler
        self._apply(self._sampler)

    @staticmethod
    def names() -> list[str]:
        """What can be set."""
        return [*_SAMPLER, "max_tokens", "overflow"]

    def values(self) -> dict[str, Any]:
        """What is set."""
        others = {"max_tokens": self._conversation.max_tokens, "overflow": self._conversation.overflow}
        return self._sampler | {"seed": self._conversation.sampler.seed} | others

    def set(self, name: str, value: str) -> None:
        """Set a value.

        Raises:
            ArgumentError: there is no such setting, or the value is out of its range.
        """
        if name == "overflow":
            if value not in _OVERFLOW:
                raise ArgumentError(f"overflow: {value!r}, expected {' or '.join(_OVERFLOW)}")
            self._conversation.overflow = "drop" if value == "drop" else "stop"
        elif name == "max_tokens":
            number = _number(name, value, int)
            if number < 1:
                raise ArgumentError(f"max_tokens: {number}, expected at least 1")
            self._conversation.max_tokens = number
        elif name in _SAMPLER:
            kind = float if isinstance(_SAMPLER[name], float) else int
            self._apply(self._sampler | {name: _number(name, value, kind)})
        else:
            near = get_close_matches(name, self.names(), 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ArgumentError(f"{name}: no such setting{meant} /show settings lists them")

    def _apply(self, options: dict[str, Any]) -> None:
        breakers = _breakers(self._conversation.model) if options["dry_multiplier"] else []
        self._conversation.sampler = Sampler(**options, dry_breakers=breakers)
        self._sampler = options


def _breakers(model: Model) -> list[int]:
    return tokens_with(model.tokenizer)


def _number(name: str, value: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ArgumentError(f"{name}: {value!r} is not a {'whole ' if kind is int else ''}number") from None
