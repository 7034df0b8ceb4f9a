"""The read-answer loop: lines in, answers and notes out. Where they come from and go to is the console's matter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from ..errors import PykvqError
from . import commands
from .conversation import Conversation
from .settings import Settings

QUOTES = '"""'
Interruptible = Callable[[Callable[[], None]], AbstractContextManager[None]]  # calls the function when Ctrl-C comes


class Console(Protocol):
    """What the loop needs of a terminal or of pipes."""

    def read(self, default: str = "", *, is_continued: bool = False) -> str:
        """A line. Raises EOFError at the end, KeyboardInterrupt after Ctrl-C."""
        ...

    def write(self, text: str, *, is_thinking: bool = False) -> None:
        """A piece of an answer."""
        ...

    def note(self, text: str) -> None:
        """A line that is no part of an answer."""
        ...


class Repl:
    """Reads messages and commands until the end of the input."""

    def __init__(
        self, conversation: Conversation, settings: Settings, console: Console, interruptible: Interruptible
    ) -> None:
        self.conversation = conversation
        self.settings = settings
        self.is_done = False
        self.attached = ""  # text of /read, for the next message
        self.shows_thinking = True
        self._console = console
        self._interruptible = interruptible

    def run(self) -> None:
        """Until /exit or the end of the input."""
        while not self.is_done:
            try:
                line = self._read_message()
            except KeyboardInterrupt:
                self._console.note("/exit or Ctrl-D leaves")
                continue
            except EOFError:
                return
            try:
                self._handle(line)
            except PykvqError as error:
                self._console.note(str(error))
            except KeyboardInterrupt:
                self._console.note("stopped")

    def answer(self, question: str) -> None:
        """Ask and show the answer. Ctrl-C ends the answer."""
        pieces = self.conversation.ask(question)
        ended = "\n"
        try:
            with self._interruptible(self.conversation.cancel):
                for text, is_thinking in pieces:
                    if self.shows_thinking or not is_thinking:
                        self._console.write(text, is_thinking=is_thinking)
                        ended = text
        except KeyboardInterrupt:  # a second Ctrl-C, which did not wait for the step to end
            pieces.close()
        if not ended.endswith("\n"):
            self._console.write("\n")
        self._explain_end()

    def edit(self, text: str) -> str:
        """The text as the user changes it; nothing if they give up."""
        try:
            return self._console.read(text)
        except (KeyboardInterrupt, EOFError):
            return ""

    def _explain_end(self) -> None:
        conversation, generation = self.conversation, self.conversation.generation
        if conversation.n_dropped:
            self._console.note(f"the context was full: {conversation.n_dropped} oldest turns were dropped")
        if generation is None:
            return
        reason, n_ctx = generation.result.finish_reason, generation.plan.n_ctx
        if reason == "cancelled":
            self._console.note("stopped")
        elif reason == "length" and len(conversation.sequence) == n_ctx:
            self._console.note(f"the context of {n_ctx} tokens is full")
        elif reason == "length":
            self._console.note(f"stopped after {conversation.max_tokens} tokens; /set max_tokens changes that")

    def _read_message(self) -> str:
        line = self._console.read()
        if not line.lstrip().startswith(QUOTES):
            return line
        lines = [line.lstrip()[len(QUOTES) :]]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(self._console.read(is_continued=True))
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n")

    def _handle(self, line: str) -> None:
        if line.startswith("/"):
            for shown in commands.run(self, line):
                self._console.note(shown)
        elif line.strip():
            attached, self.attached = self.attached, ""
            self.answer(attached + line)
