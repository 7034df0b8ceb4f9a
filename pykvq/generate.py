"""From a prompt to text, piece by piece."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypedDict

from .engine import Engine, Sequence, log_sum_exp
from .errors import ArgumentError, CancelledError, FullError, PykvqError
from .model import Model
from .sampling import Sampler
from .speculative import LOOKUP_MATCH, DraftModel, PromptLookup, Speculation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from .engine import EngineOptions
    from .grammar import JSONSchema, Matcher

DEFAULT_MAX_TOKENS = 512
DRAFT_LOGITS = 16  # logit rows that an engine needs for the longest draft
LOOKUP_TOKENS, MODEL_TOKENS = 15, 6  # of a draft, by default
FinishReason: TypeAlias = Literal["eog", "stop", "length", "grammar", "cancelled"]


class GenerateOptions(TypedDict, total=False):
    """Options of `generate` about how an answer is made, whatever the prompt; see there."""

    json_schema: JSONSchema | None
    regex: str | None
    grammar: str | None
    lookup: bool | int
    draft: Model | Engine | Sequence | None
    draft_tokens: int | None


class TokenLogprobs(NamedTuple):
    """Natural log-probabilities where one token was drawn: the model's own, before penalties and filters."""

    logprob: float  # of the token that was drawn
    top_tokens: npt.NDArray[np.int64]  # (n) the likeliest, likeliest first
    top_logprobs: npt.NDArray[np.float32]  # (n)


@dataclass
class GenerationResult:
    """What a generation has produced so far; final once the iteration has ended."""

    n_prompt_tokens: int
    n_reused_tokens: int = 0  # of the prompt, found in the sequence's cache
    text: str = ""
    tokens: list[int] = field(default_factory=list[int])  # generated, the end-of-generation token included
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])  # of each token, if asked for
    finish_reason: FinishReason = "cancelled"
    prompt_seconds: float = 0.0  # from the start to the first token
    decode_seconds: float = 0.0  # for the tokens after the first; the consumer's own time is not counted
    mask_seconds: float = 0.0  # of both, for finding out which tokens a schema or grammar allows
    n_drafted: int = 0  # tokens that were guessed
    n_accepted: int = 0  # and were right
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

    @property
    def acceptance(self) -> float:
        """The part of the guessed tokens that were right; 0 if none was guessed."""
        return self.n_accepted / self.n_drafted if self.n_drafted else 0.0


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
        n_logprobs: int,
        matcher: Matcher | None,
        speculation: Speculation | None,
        resources: ExitStack,
    ) -> None:
        self.result = GenerationResult(n_prompt_tokens=len(prompt))
        self.sampler = sampler
        self.plan = sequence.engine.plan
        self._sequence = sequence
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._stop = stop
        self._eog = frozenset[int]() if ignore_eog else sequence.engine.model.tokenizer.eog_ids
        self._n_logprobs = n_logprobs
        self._matcher = matcher
        self._speculation = speculation
        self._resources = resources  # what to close at the end
        self._is_cancelled = False
        self._turn = threading.RLock()  # of whoever advances or closes the iteration
        self._pieces = self._run()

    @property
    def sequence(self) -> Sequence:
        """What holds the prompt and the answer."""
        return self._sequence

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        with self._turn:
            return next(self._pieces)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> str:
        import asyncio  # here, since it is slow to import and many never need it

        try:
            piece = await asyncio.to_thread(next, self, None)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    @property
    def n_pending(self) -> int:
        """Tokens of the prompt that are still to be fed; any thread may ask."""
        return self._sequence.n_pending

    def cancel(self) -> None:
        """End the iteration soon, with what there is. Callable from any thread, also before it has begun."""
        self._is_cancelled = True
        self._sequence.engine.cancel(self._sequence)

    def close(self) -> None:
        """End the iteration now. Closing twice is fine."""
        with self._turn:
            self._pieces.close()
            self._resources.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, *exc: object) -> None:
        import asyncio

        await asyncio.to_thread(self.close)

    def _run(self) -> Generator[str, None, None]:
        """Text to hand out: what is decoded, held back while it may be the beginning of a stop string."""
        held = ""
        with self._resources, closing(self._decoded()) as pieces:
            for piece in pieces:
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

    def _decoded(self) -> Generator[str, None, None]:
        tokenizer = self._sequence.engine.model.tokenizer
        stream = tokenizer.stream(after=self._prompt[-1], skip_special=True)
        with closing(self._tokens()) as tokens:
            for token in tokens:
                yield stream.push(token)
        yield stream.finish()

    def _tokens(self) -> Generator[int, None, None]:
        result, sequence = self.result, self._sequence
        try:
            result.n_reused_tokens = sequence.sync(self._prompt)
            while True:
                for token in self._timed_draws():
                    result.tokens.append(token)
                    if token in self._eog:
                        result.finish_reason = "eog"
                        return
                    yield token
                if self._matcher is not None and self._matcher.is_complete:
                    result.finish_reason = "grammar"
                    return
                if len(result.tokens) == self._max_tokens or len(sequence) == self.plan.n_ctx:
                    result.finish_reason = "length"
                    return
        except CancelledError:
            return
        finally:
            self._take_back()

    def _take_back(self) -> None:
        """Leave all tokens in the sequence but the last, which was never fed."""
        del self.result.logprobs[len(self.result.tokens) :]
        n_kept = len(self._prompt) + len(self.result.tokens) - 1
        with suppress(PykvqError):  # it may be closed already
            if self.result.tokens and len(self._sequence) > n_kept:
                self._sequence.rewind(n_kept)
                self.result.n_ctx_used = n_kept

    def _timed_draws(self) -> list[int]:
        result, sequence = self.result, self._sequence
        begin = time.perf_counter()
        tokens = self._draws()
        seconds = time.perf_counter() - begin
        if result.tokens:
            result.decode_seconds += seconds
        else:
            result.prompt_seconds = seconds
        result.n_ctx_used = len(sequence)
        result.n_kv_bytes = sequence.n_kv_bytes
        return tokens

    def _draws(self) -> list[int]:
        """Feed what is pending and a draft behind it; the draft as far as it is right, and the token after that."""
        result, sequence = self.result, self._sequence
        draft: list[int] = []
        if result.tokens:
            draft = self._draft()
            sequence.push([result.tokens[-1], *draft])
        with sequence.engine.use():
            self._feed(with_draft=bool(draft))
            tokens: list[int] = []
            while len(tokens) <= len(draft):
                tokens.append(self._sample(len(tokens) if draft else -1))
                is_right = tokens == draft[: len(tokens)]
                if not is_right or tokens[-1] in self._eog or (self._matcher and self._matcher.is_complete):
                    break
            n_accepted = len(tokens) - 1
            if n_accepted < len(draft):
                sequence.rewind(len(sequence) - len(draft) + n_accepted)
        if draft and self._speculation is not None:
            self._speculation.learn(len(draft), n_accepted)
            result.n_drafted += len(draft)
            result.n_accepted += n_accepted
        return tokens

    def _draft(self) -> list[int]:
        if self._speculation is None:
            return []
        n_most = min(self._sequence.n_draft, self._max_tokens - len(self.result.tokens)) - 1
        return self._speculation.propose(self._prompt + self.result.tokens, n_most)

    def _feed(self, *, with_draft: bool) -> None:
        sequence = self._sequence
        if self._speculation is not None:
            sequence.keep_logits(all_tokens=with_draft)
        while sequence.n_pending:
            if self._is_cancelled:
                raise CancelledError("generation: cancelled")
            sequence.engine.step([sequence])

    def _sample(self, row: int) -> int:
        sequence = self._sequence
        if self._matcher is None:
            token = sequence.sample(self.sampler, row)
        else:
            begin = time.perf_counter()
            mask = self._matcher.mask()
            self.result.mask_seconds += time.perf_counter() - begin
            self.sampler.allow(mask)
            try:
                token = sequence.sample(self.sampler, row)
            finally:
                self.sampler.allow(None)
            self._matcher.push(token)
        if self._n_logprobs:
            self.result.logprobs.append(self._logprobs(row, token))
        return token

    def _logprobs(self, row: int, token: int) -> TokenLogprobs:
        logits = self._sequence.logits_row(row)
        top, logprobs = self._sequence.top_logprobs(self._n_logprobs, row)
        return TokenLogprobs(float(logits[token]) - log_sum_exp(logits), top, logprobs)


def generate(
    target: Model | Engine | Sequence,
    prompt: str | Iterable[int],
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    sampler: Sampler | None = None,
    stop: str | Iterable[str] = (),
    ignore_eog: bool = False,
    json_schema: JSONSchema | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    lookup: bool | int = False,
    draft: Model | Engine | Sequence | None = None,
    draft_tokens: int | None = None,
    logprobs: int = 0,
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
        json_schema: the text is JSON that this schema allows. Needs the extra `grammar`, as do the next two. The text
            ends where nothing more can follow ("grammar"), or where it is whole and the model ends it ("eog").
        regex: the text is matched by this regular expression.
        grammar: the text is in the language of this Lark grammar.
        lookup: guess tokens by what followed the same 3 tokens before (a number: so many tokens), and check several in
            one step. The text is the same as without, and comes faster where it repeats itself or the prompt.
        draft: guess tokens with this smaller model of the same vocabulary. The text is the same as without.
        draft_tokens: most tokens to guess at a time; default 15 for lookup, 6 for a model; at most 15.
        logprobs: keep the log-probabilities of each token and of so many of the likeliest in `result.logprobs`.
        options: of the engine, if target is a model.

    Returns:
        an iterator of pieces of text, with `result`.

    Raises:
        ArgumentError: the prompt is empty, an option is out of its range, or a schema or grammar is wrong.
        FullError: the prompt is longer than the context.
        UnsupportedError: a schema or grammar is given and llguidance is not installed.
    """
    if max_tokens < 1:
        raise ArgumentError(f"max_tokens: {max_tokens} is not positive")
    if isinstance(target, Model) and (lookup or draft is not None) and options.get("logits") is None:
        options["logits"] = DRAFT_LOGITS
    with ExitStack() as resources:
        sequence = sequence_on(target, options, resources)
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
            n_logprobs=logprobs,
            matcher=_matcher(engine, {"json_schema": json_schema, "regex": regex, "grammar": grammar}),
            speculation=_speculation(engine, lookup, draft, draft_tokens, resources),
            resources=resources.pop_all(),
        )


def sequence_on(target: Model | Engine | Sequence, options: EngineOptions, resources: ExitStack) -> Sequence:
    """The sequence to generate on; what is made for it goes to resources."""
    if isinstance(target, Model):
        target = resources.enter_context(Engine(target, **options))
    elif options:
        raise ArgumentError(f"generate: {', '.join(options)} can only be set for a model, the engine exists already")
    return resources.enter_context(target.sequence()) if isinstance(target, Engine) else target


def _matcher(engine: Engine, constraints: Mapping[str, Any]) -> Matcher | None:
    given = {name: value for name, value in constraints.items() if value is not None}
    if not given:
        return None
    from .grammar import Matcher

    return Matcher(engine.model.tokenizer, **given)


def _speculation(
    engine: Engine,
    lookup: bool | int,
    draft: Model | Engine | Sequence | None,
    n_tokens: int | None,
    resources: ExitStack,
) -> Speculation | None:
    if not lookup and draft is None:
        return None
    if lookup and draft is not None:
        raise ArgumentError("generate: lookup and draft exclude each other")
    if n_tokens is not None and not 1 <= n_tokens < DRAFT_LOGITS:
        raise ArgumentError(f"draft_tokens: {n_tokens}, expected 1 to {DRAFT_LOGITS - 1}")
    if engine.plan.n_logits < 2:
        raise ArgumentError(f"generate: to check drafts an engine must be made with logits={DRAFT_LOGITS}")
    if draft is None:
        return Speculation(PromptLookup(LOOKUP_MATCH if lookup is True else lookup), n_tokens or LOOKUP_TOKENS)
    options: EngineOptions = {"ctx": engine.plan.n_ctx} if isinstance(draft, Model) else {}
    return Speculation(DraftModel(sequence_on(draft, options, resources), engine.model), n_tokens or MODEL_TOKENS)


def _find_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop string begins."""
    return min((at for at in (text.find(s) for s in stop) if at >= 0), default=None)


def _n_held(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of text that is the beginning of a stop string."""
    longest = max((len(s) for s in stop), default=1) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in stop)), 0)
