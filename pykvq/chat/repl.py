"""The read-answer loop: lines in, answers and notes out. Where they come from and go to is the console's matter."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Protocol

from ..engine import Sequence
from ..errors import CancelledError, PykvqError
from . import commands
from .conversation import Conversation, Piece
from .settings import Settings

QUOTES = '"""'
Interruptible = Callable[[Callable[[], None]], AbstractContextManager[None]]  # calls the function when Ctrl-C comes


class Stoppable(Protocol):
    """What `Console.busy` enters."""

    def stop(self) -> None:
        """The wait is over."""
        ...


class Console(Protocol):
    """What the loop needs of a terminal or of pipes."""

    @property
    def columns(self) -> int:
        """How wide it is."""
        ...

    def read(self, default: str = "", *, is_continued: bool = False) -> str:
        """A line. Raises EOFError at the end, KeyboardInterrupt after Ctrl-C."""
        ...

    def write(self, text: str, *, is_thinking: bool = False) -> None:
        """A piece of an answer."""
        ...

    def note(self, text: str) -> None:
        """A line that is no part of an answer."""
        ...

    def busy(self, describe: Callable[[], str | None]) -> AbstractContextManager[Stoppable]:
        """Shows what takes so long, if it does, until it is stopped."""
        ...


class Repl:
    """Reads messages and commands until the end of the input.

    Args:
        open_sequence: an empty sequence on the same model whose cache is of another KV type.
    """

    def __init__(
        self,
        conversation: Conversation,
        settings: Settings,
        console: Console,
        interruptible: Interruptible,
        open_sequence: Callable[[str], Sequence],
    ) -> None:
        self.conversation = conversation
        self.settings = settings
        self.is_done = False
        self.attached = ""  # text of /read, for the next message
        self.shows_thinking = True
        self._console = console
        self._interruptible = interruptible
        self._open_sequence = open_sequence
        self._n_dropped = 0  # turns, as far as the user was told

    @property
    def columns(self) -> int:
        """How wide the console is."""
        return self._console.columns

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

    def show(self, pieces: Generator[Piece, None, None]) -> None:
        """Show an answer as it comes. Ctrl-C ends the answer."""
        ended = "\n"
        try:
            with self._interruptible(self.conversation.cancel), self._console.busy(self._reading) as busy:
                for text, is_thinking in pieces:
                    busy.stop()
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

    def switch_kv(self, kv: str) -> None:
        """Go on with a cache of another KV type, which reads the conversation anew."""
        conversation = self.conversation
        sequence = self._open_sequence(kv)
        conversation.sequence.engine.close()
        conversation.sequence = sequence
        try:
            with self._interruptible(sequence.engine.cancel), self._console.busy(self._reading):
                for _ in conversation.reread():
                    pass
        except CancelledError:
            self._console.note("stopped; the next answer reads the rest")

    def _reading(self) -> str | None:
        n_pending = self.conversation.sequence.n_pending
        return f"reading, {n_pending:,} tokens to go" if n_pending > 1 else None

    def _explain_end(self) -> None:
        conversation, generation = self.conversation, self.conversation.generation
        if conversation.n_dropped > self._n_dropped:
            turns = "turn is" if conversation.n_dropped == 1 else f"{conversation.n_dropped} turns are"
            self._console.note(f"the context is full: the oldest {turns} dropped from it, but not from /save")
        self._n_dropped = conversation.n_dropped
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
            self.show(self.conversation.ask(self.attached + line))
            self.attached = ""  # not before: a question that does not fit may be asked again
