"""Takes the text that a model thinks in apart from the text of its answer."""

from __future__ import annotations

from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"


class Piece(NamedTuple):
    """A piece of streamed text."""

    text: str
    is_thinking: bool


class ThinkingSplitter:
    """Splits streamed text at the tags <think> and </think>, which may arrive in parts.

    Args:
        is_thinking: whether the prompt has opened a thinking part already.
    """

    def __init__(self, *, is_thinking: bool = False) -> None:
        self._is_thinking = is_thinking
        self._held = ""
        self._at_start = True  # white space in front of a part is layout of the template

    def push(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""
        self._held += text
        pieces: list[Piece] = []
        while True:
            tag = CLOSE if self._is_thinking else OPEN
            before, found, after = self._held.partition(tag)
            if not found:
                break
            self._add(pieces, before)
            self._held, self._is_thinking, self._at_start = after, not self._is_thinking, True
        n_held = next((n for n in range(len(tag) - 1, 0, -1) if self._held.endswith(tag[:n])), 0)
        self._add(pieces, self._held[: len(self._held) - n_held])
        self._held = self._held[len(self._held) - n_held :]
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back."""
        pieces: list[Piece] = []
        self._add(pieces, self._held)
        self._held = ""
        return pieces

    def _add(self, pieces: list[Piece], text: str) -> None:
        if self._at_start:
            text = text.lstrip()
        if text:
            self._at_start = False
            pieces.append(Piece(text, self._is_thinking))
