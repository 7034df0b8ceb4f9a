"""A conversation: its messages, and a sequence whose cache follows them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..engine import Sequence
from ..errors import ArgumentError, FileError, FormatError, FullError, PykvqError, UnsupportedError
from ..generate import Generation, generate
from ..sampling import Sampler
from .thinking import OPEN, Piece, ThinkingSplitter

Overflow: TypeAlias = Literal["drop", "stop"]  # drop the oldest turns of a full context, or stop
Message: TypeAlias = dict[str, str]

FILE_FORMAT = "pykvq chat 1"


class Conversation:
    """Turns of a user and a model. What the cache already holds of a prompt is never computed again.

    Args:
        sequence: follows the conversation; it stays the caller's to close.
        system: the system message.
        sampler: of the answers; may be replaced between them.
        max_tokens: of one answer.
        overflow: what to do when the context is full.
        thinking: passed to the template as `enable_thinking`; None: the template decides.
        tools: functions that the model may call, as JSON schemas; passed to the template.

    Raises:
        UnsupportedError: the model has no chat template, and no built-in one fits.
    """

    def __init__(
        self,
        sequence: Sequence,
        *,
        system: str | None = None,
        sampler: Sampler | None = None,
        max_tokens: int = 1024,
        overflow: Overflow = "drop",
        thinking: bool | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> None:
        self.model = sequence.engine.model
        if self.model.chat_template is None:
            raise UnsupportedError(
                f"{self.model.path}: the file has no chat template, and no built-in one fits its vocabulary"
            )
        self.sequence = sequence
        self.system = system
        self.sampler = sampler or Sampler()
        self.max_tokens = max_tokens
        self.overflow: Overflow = overflow
        self.thinking = thinking
        self.tools = tools
        self.messages: list[Message] = []  # of user and assistant, oldest first
        self.n_dropped = 0  # turns that the last answer's prompt had no room for
        self.generation: Generation | None = None  # the last answer
        self._is_cancelled = False

    def ask(self, text: str) -> Generator[Piece, None, None]:
        """Add a question and stream the answer. Ending early keeps what there is of it.

        Raises:
            FullError: the context has no room for the question; the conversation is as before.
            ArgumentError: the template refuses the messages; the conversation is as before.
        """
        self._is_cancelled = False
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            prompt = self._fit_prompt()
        except PykvqError:
            self.messages = before
            raise
        yield from self._answer(prompt)

    def take_back(self) -> str:
        """Remove the last question and its answer; the question.

        Raises:
            ArgumentError: there is none.
        """
        last = max((i for i, message in enumerate(self.messages) if message["role"] == "user"), default=None)
        if last is None:
            raise ArgumentError("conversation: there is no question yet")
        question = self.messages[last]["content"]
        del self.messages[last:]
        return question

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        self.messages = []

    def cancel(self) -> None:
        """End the answer that is being made; from any thread."""
        self._is_cancelled = True  # for an answer whose generation does not exist yet
        if self.generation is not None:
            self.generation.cancel()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to a file, and its cache beside it, to PATH.kv.

        Raises:
            FileError: a file cannot be written.
        """
        path = Path(path)
        self.sequence.save(f"{path}.kv")
        record = {"format": FILE_FORMAT, "system": self.system, "messages": self.messages}
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(json.dumps(record, ensure_ascii=False, indent=1), "utf-8")
            part.replace(path)
        except OSError as error:
            raise FileError(f"{path}: {error.strerror}") from error

    def load(self, path: str | os.PathLike[str]) -> PykvqError | None:
        """Take back what `save` wrote.

        Returns:
            why the cache was not taken, if it was not: another model, other KV settings, a missing file. The turns are
            there nevertheless, and the next answer computes them again.

        Raises:
            FileError: the file cannot be read.
            FormatError: it is no saved conversation.
        """
        self.system, self.messages = _read_record(Path(path))
        try:
            self.sequence.load(f"{os.fspath(path)}.kv")
        except PykvqError as error:
            return error
        return None

    def _prompt(self) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        variables: dict[str, Any] = {"tools": self.tools}
        if self.thinking is not None:
            variables["enable_thinking"] = self.thinking
        return self.model.chat_tokens([*system, *self.messages], **variables)

    def _fit_prompt(self) -> list[int]:
        """The prompt, without the oldest turns if they leave no room for an answer."""
        n_ctx = self.sequence.engine.plan.n_ctx
        n_reserved = min(self.max_tokens, n_ctx // 4)
        self.n_dropped = 0
        while True:
            prompt = self._prompt()
            if len(prompt) + n_reserved <= n_ctx:
                return prompt
            next_turn = next((i for i, m in enumerate(self.messages) if i > 0 and m["role"] == "user"), None)
            if self.overflow == "stop" or next_turn is None:
                raise FullError(
                    f"context: {len(prompt)} tokens and {n_reserved} for the answer do not fit its {n_ctx} tokens"
                )
            del self.messages[:next_turn]
            self.n_dropped += 1

    def _answer(self, prompt: list[int]) -> Generator[Piece, None, None]:
        opens = self.model.tokenizer.decode(prompt[-8:]).rstrip().endswith(OPEN)
        splitter = ThinkingSplitter(is_thinking=opens)
        parts: dict[bool, list[str]] = {False: [], True: []}
        self.generation = generate(self.sequence, prompt, max_tokens=self.max_tokens, sampler=self.sampler)
        if self._is_cancelled:
            self.generation.cancel()
        try:
            for text in self.generation:
                for piece in splitter.push(text):
                    parts[piece.is_thinking].append(piece.text)
                    yield piece
            for piece in splitter.finish():
                parts[piece.is_thinking].append(piece.text)
                yield piece
        finally:
            self.generation.close()
            message = {"role": "assistant", "content": "".join(parts[False]).rstrip()}
            if parts[True]:
                message["reasoning_content"] = "".join(parts[True]).rstrip()
            self.messages.append(message)


def _read_record(path: Path) -> tuple[str | None, list[Message]]:
    try:
        record: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise FormatError(f"{path}: not a saved conversation ({error})") from None
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        system, messages = record["system"], record["messages"]
        texts = [text for message in messages for text in message.values()]
        roles = {message["role"] for message in messages if "content" in message}
        if (
            record["format"] == FILE_FORMAT
            and isinstance(system, str | None)
            and all(isinstance(text, str) for text in texts)
            and roles <= {"user", "assistant"}
            and all("content" in message for message in messages)
        ):
            return system, messages
    raise FormatError(f"{path}: not a conversation saved as {FILE_FORMAT!r}")
