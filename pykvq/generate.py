"""From a prompt to text, piece by piece."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from .engine import Engine, Sequence
from .errors import ArgumentError, CancelledError, FullError
from .model import Model
from .sampling import Sampler

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .engine import EngineOptions

DEFAULT_MAX_TOKENS = 512
FinishReason: TypeAlias = Literal["eog", "stop", "length", "cancelled"]


@dataclass
class GenerationResult:
    """What a generation has produced so far; final once the iteration has ended."""

    n_prompt_tokens: int
    n_reused_tokens: int = 0  # of the prompt, found in the sequence's cache
    text: str = ""
    tokens: list[int] = field(default_factory=list[int])  # generated, the end-of-generation token included
    finish_reason: FinishReason = "cancelled"
    prompt_seconds: float = 0.0  # from the start to the first token
    decode_seconds: float = 0.0  # for the tokens after the first; the consumer's own time is not counted
    n_ctx_used: int = 0  # tokens in the sequence
    n_kv_bytes: int = 0  # of the cache pages that the sequence holds

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt tokens fed per second; 0 before the first token."""
        return (self.n_prompt_tokens - self.n_reused_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens per second after the first; 0 if there is only one."""
        return (len(self.tokens) - 1) / self.decode_seconds if self.decode_seconds else 0.0


class Generation(Iterator[str]):
    """The text of one generation, in pieces of whole characters: iterate it, with `for` or `async for`.

    `result` is filled as the pieces come. Ending the iteration early is fine; `close` then frees the memory at once.
    """

    def __init__(
        self,
        sequence: Sequence,
        prompt: list[int],
        *,
        max_tokens: int,
        sampler: Sampler,
        stop: tuple[str, ...],
        ignore_eog: bool,
        resources: ExitStack,
    ) -> None:
        self.result = GenerationResult(n_prompt_tokens=len(prompt))
        self.sampler = sampler
        self.plan = sequence.engine.plan
        self._sequence = sequence
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._stop = stop
        self._ignore_eog = ignore_eog
        self._resources = resources  # what to close at the end
        self._finished = False
        self._pieces = self._run()

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> str:
        piece = await asyncio.to_thread(next, self._pieces, None)
        if piece is None:
            raise StopAsyncIteration
        return piece

    def cancel(self) -> None:
        """End the iteration soon, with what there is. Callable from any thread."""
        if not self._finished:  # the engine keeps a cancellation for its next step
            self._sequence.engine.cancel()

    def close(self) -> None:
        """End the iteration now. Closing twice is fine."""
        self._pieces.close()
        self._resources.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> Generator[str, None, None]:
        """Text to hand out: what is decoded, held back while it may be the beginning of a stop string."""
        held = ""
        with self._resources:
            for piece in self._decoded():
                held += piece
                if (begin := _find_stop(held, self._stop)) is not None:
                    self.result.finish_reason = "stop"
                    held = held[:begin]
                    break
                ready = len(held) - _n_held(held, self._stop)
                if ready:
                    self.result.text += held[:ready]
                    yield held[:ready]
                    held = held[ready:]
            if held:
                self.result.text += held
                yield held

    def _decoded(self) -> Iterator[str]:
        tokenizer = self._sequence.engine.model.tokenizer
        stream = tokenizer.stream(after=self._prompt[-1], skip_special=True)
        for token in self._tokens():
            yield stream.push(token)
        yield stream.finish()

    def _tokens(self) -> Iterator[int]:
        result, sequence = self.result, self._sequence
        eog = frozenset[int]() if self._ignore_eog else sequence.engine.model.tokenizer.eog_ids
        try:
            result.n_reused_tokens = sequence.sync(self._prompt)
            while True:
                token = self._next_token()
                if token in eog:
                    result.finish_reason = "eog"
                    return
                yield token
                if len(result.tokens) == self._max_tokens or len(sequence) == self.plan.n_ctx:
                    result.finish_reason = "length"
                    return
                sequence.push([token])
        except CancelledError:
            return
        finally:
            self._finished = True

    def _next_token(self) -> int:
        """Feed what is pending and draw a token."""
        result, sequence = self.result, self._sequence
        begin = time.perf_counter()
        while sequence.n_pending:
            sequence.engine.step([sequence])
        token = sequence.sample(self.sampler)
        seconds = time.perf_counter() - begin
        if result.tokens:
            result.decode_seconds += seconds
        else:
            result.prompt_seconds = seconds
        result.tokens.append(token)
        result.n_ctx_used = len(sequence)
        result.n_kv_bytes = sequence.n_kv_bytes
        return token


def generate(
    target: Model | Engine | Sequence,
    prompt: str | Iterable[int],
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    sampler: Sampler | None = None,
    stop: str | Iterable[str] = (),
    ignore_eog: bool = False,
    **options: Unpack[EngineOptions],
) -> Generation:
    """Continue a prompt.

    Args:
        target: a model (an engine is made for this call), an engine (a sequence is made), or a sequence, whose cached
            prefix is reused and which then holds the prompt and the answer.
        prompt: text, in which the names of special tokens are those tokens, or token ids. For a conversation pass
            `model.chat_tokens(messages)`.
        max_tokens: end after so many tokens ("length").
        sampler: default `Sampler()`.
        stop: end before any of these texts appears ("stop").
        ignore_eog: go on after an end-of-generation token.
        options: of the engine, if target is a model.

    Returns:
        an iterator of pieces of text, with `result`.

    Raises:
        ArgumentError: the prompt is empty, or an option is out of its range.
        FullError: the prompt is longer than the context.
    """
    if max_tokens < 1:
        raise ArgumentError(f"max_tokens: {max_tokens} is not positive")
    with ExitStack() as resources:
        sequence = _sequence(target, options, resources)
        engine = sequence.engine
        tokens = engine.model.tokenizer.encode(prompt, parse_special=True) if isinstance(prompt, str) else list(prompt)
        if not prompt or not tokens:
            raise ArgumentError("prompt: it is empty")
        if len(tokens) > engine.plan.n_ctx:
            raise FullError(
                f"prompt: {len(tokens)} tokens do not fit the context of {engine.plan.n_ctx}; "
                f"the model was trained for {engine.model.info.n_ctx_train}"
            )
        return Generation(
            sequence,
            tokens,
            max_tokens=max_tokens,
            sampler=sampler or Sampler(),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            ignore_eog=ignore_eog,
            resources=resources.pop_all(),
        )


def _sequence(target: Model | Engine | Sequence, options: EngineOptions, resources: ExitStack) -> Sequence:
    """The sequence to generate on; what is made for it goes to resources."""
    if isinstance(target, Model):
        target = resources.enter_context(Engine(target, **options))
    elif options:
        raise ArgumentError(f"generate: {', '.join(options)} can only be set for a model, the engine exists already")
    return resources.enter_context(target.sequence()) if isinstance(target, Engine) else target


def _find_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop string begins."""
    return min((at for at in (text.find(s) for s in stop) if at >= 0), default=None)


def _n_held(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of text that is the beginning of a stop string."""
    longest = max((len(s) for s in stop), default=1) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in stop)), 0)
