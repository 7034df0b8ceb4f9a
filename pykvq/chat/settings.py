"""What /set changes: the options of the sampler, how answers are made, what a full context does."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from ..errors import ArgumentError
from ..sampling import SETTINGS, make_sampler, read_setting
from .conversation import Conversation

_OVERFLOW = ("drop", "stop")
_GUIDES = ("json_schema", "regex", "grammar")  # an answer meets one of these at most; two are files
_OTHERS = ("max_tokens", "overflow", "lookup", *_GUIDES)


class Settings:
    """Names and values, applied to a conversation as they change."""

    def __init__(self, conversation: Conversation, **sampler: Any) -> None:
        self._conversation = conversation
        self._sampler = SETTINGS | sampler
        self._shown: dict[str, Any] = {"lookup": bool(conversation.options.get("lookup"))} | dict.fromkeys(_GUIDES)
        self._apply(self._sampler)

    @staticmethod
    def names() -> list[str]:
        """What can be set."""
        return [*SETTINGS, *_OTHERS]

    def values(self) -> dict[str, Any]:
        """What is set."""
        others = {"max_tokens": self._conversation.max_tokens, "overflow": self._conversation.overflow}
        return self._sampler | {"seed": self._conversation.sampler.seed} | others | self._shown

    def set(self, name: str, value: str) -> None:
        """Set a value.

        Raises:
            ArgumentError: there is no such setting, or the value is out of its range.
            FileError: it is a file that cannot be read.
        """
        if name in SETTINGS:
            self._apply(self._sampler | {name: read_setting(name, value)})
        elif name == "overflow":
            self._conversation.overflow = "drop" if _choice(name, value, _OVERFLOW) == "drop" else "stop"
        elif name == "max_tokens":
            if not value.isdecimal() or int(value) < 1:
                raise ArgumentError(f"max_tokens: {value}, expected at least 1")
            self._conversation.max_tokens = int(value)
        elif name == "lookup":
            is_on = _choice(name, value, ("on", "off")) == "on"
            if is_on and self._conversation.options.get("draft") is not None:
                raise ArgumentError("lookup: a draft model guesses already")
            self._conversation.options["lookup"] = self._shown["lookup"] = is_on
        elif name in _GUIDES:
            self._guide(name, value)
        else:
            near = get_close_matches(name, self.names(), 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ArgumentError(f"{name}: no such setting{meant} /show settings lists them")

    def _guide(self, name: str, value: str) -> None:
        """What answers must meet from now on; "none" lets them be."""
        guide, options = None, self._conversation.options
        if value != "none":
            from ..grammar import Matcher, read_constraint

            guide = read_constraint(name, value)
            Matcher(self._conversation.model.tokenizer, **{name: guide})  # so that what is wrong is said now
        for other in _GUIDES:
            options.pop(other, None)
            self._shown[other] = None
        if guide is not None:
            options[name] = guide
            self._shown[name] = value

    def _apply(self, settings: dict[str, Any]) -> None:
        self._conversation.sampler = make_sampler(self._conversation.model.tokenizer, settings)
        self._sampler = settings


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ArgumentError(f"{name}: {value!r}, expected {' or '.join(choices)}")
    return value
