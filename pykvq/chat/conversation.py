"""A conversation: its messages, and a sequence whose cache follows them."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from bisect import bisect_left
from collections.abc import AsyncGenerator, Generator, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..engine import Sequence
from ..errors import ArgumentError, FileError, FormatError, FullError, PykvqError, UnsupportedError
from ..generate import GenerateOptions, Generation, generate
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
        overflow: what to do when the context is full; turns that are dropped from it stay in `messages` and in files.
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
        self.messages: list[Message] = []  # of user, assistant and tool, oldest first
        self.n_dropped = 0  # turns at the beginning that the last answer's prompt had no room for
        self.generation: Generation | None = None  # the last answer
        self.options: GenerateOptions = {}  # how answers are made: structured, guessed
        self.resources = contextlib.ExitStack()  # what to close with it
        self._is_cancelled = False

    def ask(self, text: str, *, role: Literal["user", "tool"] = "user") -> Generator[Piece, None, None]:
        """Add a question and stream the answer. Ending early keeps what there is of it.

        Args:
            text: the question, or with role "tool" the result of a call that the model asked for.

        Raises:
            FullError: the context has no room for the question; the conversation is as before.
            ArgumentError: the template refuses the messages; the conversation is as before.
        """
        yield from self._answer([*self.messages, {"role": role, "content": text}])

    def ask_again(self, text: str | None = None) -> Generator[Piece, None, None]:
        """Ask the last question again, or another one in its place. Raises what `ask` raises, and changes as little."""
        last = self._last_question()
        question = self.messages[last]["content"] if text is None else text
        yield from self._answer([*self.messages[:last], {"role": "user", "content": question}])

    def question(self) -> str:
        """The last question.

        Raises:
            ArgumentError: there is none.
        """
        return self.messages[self._last_question()]["content"]

    async def ask_async(self, text: str) -> AsyncGenerator[Piece, None]:
        """`ask`, for `async for`."""
        import asyncio

        pieces, turn = self.ask(text), threading.Lock()

        def advance() -> Piece | None:
            with turn:
                return next(pieces, None)

        def close() -> None:
            with turn:
                pieces.close()

        try:
            while (piece := await asyncio.to_thread(advance)) is not None:
                yield piece
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            await asyncio.to_thread(close)

    def close(self) -> None:
        """Close what `pykvq.chat` made for this conversation. Closing twice is fine."""
        self.resources.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def take_back(self) -> str:
        """Remove the last question and its answer; the question.

        Raises:
            ArgumentError: there is none.
        """
        question = self.question()
        self.messages = self.messages[: self._last_question()]
        return question

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        self.messages, self.n_dropped = [], 0

    def cancel(self) -> None:
        """End the answer that is being made; from any thread."""
        self._is_cancelled = True  # for an answer whose generation does not exist yet
        if self.generation is not None:
            self.generation.cancel()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to a file, and its cache beside it, to PATH.kv.

        Raises:
            FileError: a file cannot be written.
            FormatError: the file exists and is no saved conversation.
        """
        path = Path(path)
        if path.exists():
            _read_record(path)
        self.sequence.save(f"{path}.kv")
        record = {"format": FILE_FORMAT, "system": self.system}
        record |= {"messages": self.messages, "n_dropped": self.n_dropped}
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
        self.system, self.messages, self.n_dropped = _read_record(Path(path))
        try:
            self.sequence.load(f"{os.fspath(path)}.kv")
        except PykvqError as error:
            return error
        return None

    def reread(self) -> Iterator[tuple[int, int]]:
        """Compute the cache of the conversation anew, on a `sequence` that was exchanged; tokens done, of how many.

        Ending early is fine: the next answer computes the rest.
        """
        if self.messages:
            prompt = self._prompt(self.messages[self.n_dropped_messages :], add_generation_prompt=False)
            self.sequence.sync(prompt)
            while self.sequence.n_pending:
                self.sequence.engine.step([self.sequence])
                yield len(prompt) - self.sequence.n_pending, len(prompt)

    @property
    def n_dropped_messages(self) -> int:
        """The messages of the dropped turns; never all."""
        begins = _turns(self.messages)
        return begins[min(self.n_dropped, len(begins) - 1)]

    def _last_question(self) -> int:
        last = max((i for i, message in enumerate(self.messages) if message["role"] == "user"), default=None)
        if last is None:
            raise ArgumentError("conversation: there is no question yet")
        return last

    def _prompt(self, messages: list[Message], **variables: Any) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        if self.thinking is not None:
            variables["enable_thinking"] = self.thinking
        return self.model.chat_tokens([*system, *messages], tools=self.tools, **variables)

    def _fit(self, messages: list[Message]) -> tuple[int, list[int]]:
        """How many turns must be dropped to leave room for an answer, and the prompt without them."""
        n_ctx = self.sequence.engine.plan.n_ctx
        n_reserved = min(self.max_tokens, n_ctx // 4)
        begins = _turns(messages) if self.overflow == "drop" else [0]

        def prompt(n_dropped: int) -> list[int]:
            return self._prompt(messages[begins[n_dropped] :])

        most = len(begins) - 1
        n = bisect_left(range(most), True, key=lambda n: len(prompt(n)) + n_reserved <= n_ctx)
        if len(kept := prompt(n)) + n_reserved > n_ctx:
            raise FullError(
                f"context: {len(kept)} tokens and {n_reserved} for the answer do not fit its {n_ctx} tokens"
            )
        return n, kept

    def _answer(self, messages: list[Message]) -> Generator[Piece, None, None]:
        self._is_cancelled = False
        n_dropped, prompt = self._fit(messages)
        self.generation = generate(
            self.sequence, prompt, max_tokens=self.max_tokens, sampler=self.sampler, **self.options
        )
        self.messages, self.n_dropped = messages, n_dropped
        if self._is_cancelled:
            self.generation.cancel()
        opens = self.model.tokenizer.decode(prompt[-8:]).rstrip().endswith(OPEN)
        splitter = ThinkingSplitter(is_thinking=opens)
        parts: dict[bool, list[str]] = {False: [], True: []}
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


def _turns(messages: list[Message]) -> list[int]:
    """Where turns begin: the first with the first message, the others with a question."""
    return [i for i, message in enumerate(messages) if i == 0 or message["role"] == "user"] or [0]


def _read_record(path: Path) -> tuple[str | None, list[Message], int]:
    """The system message, the messages and how many turns were dropped of a saved conversation."""
    try:
        record: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise FormatError(f"{path}: not a saved conversation ({error})") from None
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        system, messages, n_dropped = record["system"], record["messages"], record.get("n_dropped", 0)
        texts = [text for message in messages for text in message.values()]
        roles = {message["role"] for message in messages if "content" in message}
        if (
            record["format"] == FILE_FORMAT
            and isinstance(system, str | None)
            and all(isinstance(text, str) for text in texts)
            and roles <= {"user", "assistant", "tool"}
            and all("content" in message for message in messages)
            and isinstance(n_dropped, int)
            and n_dropped >= 0
        ):
            return system, messages, n_dropped
    raise FormatError(f"{path}: not a conversation saved as {FILE_FORMAT!r}")
