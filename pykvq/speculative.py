"""Speculative decoding: what is cheap to guess is guessed, and the model checks several guesses in one step.

A guess is accepted where it is the token that the sampler draws from the model's own logits. So the text never depends
on the guesses: the tokens that come out are drawn as without them, from the same logits with the same random numbers.
"""

from __future__ import annotations

from math import log
from typing import Protocol

from .engine import Sequence
from .errors import ArgumentError
from .model import Model

LOOKUP_MATCH = 3  # tokens
FIRST_DRAFT = 5  # tokens
LEAST_ACCEPTED = 2  # a step of several tokens takes longer than one of a single token; fewer are not worth it
LONGEST_PAUSE = 32  # tokens
LEAST_PROBABILITY = 0.4  # a draft model that is less sure ends its draft


class Drafter(Protocol):
    """Guesses the tokens that come next."""

    def propose(self, tokens: list[int], n_most: int) -> list[int]:
        """At most n_most tokens that may follow these; none if there is nothing to go by."""
        ...


class PromptLookup:
    """Guesses what followed when the last tokens were there before, in the prompt or the answer.

    Args:
        n_match: how many of the last tokens must be the same.
    """

    def __init__(self, n_match: int = LOOKUP_MATCH) -> None:
        if n_match < 1:
            raise ArgumentError(f"lookup: {n_match} tokens to match, expected at least 1")
        self._n_match = n_match
        self._after: dict[tuple[int, ...], int] = {}  # n_match tokens -> where the token after them last was
        self._n_indexed = n_match

    def propose(self, tokens: list[int], n_most: int) -> list[int]:
        """What followed; where that runs into the end of the tokens, it repeats itself."""
        n = self._n_match
        for end in range(self._n_indexed, len(tokens)):
            self._after[tuple(tokens[end - n : end])] = end
        self._n_indexed = max(n, len(tokens))
        at = self._after.get(tuple(tokens[-n:]))
        if at is None:
            return []
        period = tokens[at:]
        return [period[i % len(period)] for i in range(n_most)]


class DraftModel:
    """Guesses the likeliest tokens of a smaller model, as long as it is sure of them.

    Args:
        sequence: of the smaller model; its cached prefix is reused.
        model: the one that is to be drafted for.

    Raises:
        ArgumentError: the two models have different vocabularies.
    """

    def __init__(self, sequence: Sequence, model: Model) -> None:
        small = sequence.engine.model
        if small.tokenizer.token_list != model.tokenizer.token_list:
            raise ArgumentError(f"draft: {small.path} and {model.path} have different vocabularies")
        self._sequence = sequence

    def propose(self, tokens: list[int], n_most: int) -> list[int]:
        """The small model's own greedy continuation."""
        sequence, engine = self._sequence, self._sequence.engine
        proposed: list[int] = []
        n_most = min(n_most, engine.plan.n_ctx - len(tokens))
        if n_most < 1:
            return []
        with engine.use():
            sequence.sync(tokens)
            while True:
                while sequence.n_pending:
                    engine.step([sequence])
                ids, logprobs = sequence.top_logprobs(1)
                if logprobs[0] < log(LEAST_PROBABILITY):
                    return proposed
                proposed.append(int(ids[0]))
                if len(proposed) == n_most:
                    return proposed
                sequence.push(proposed[-1:])


class Speculation:
    """When to ask a drafter, and for how much: twice what was right the last time. After guesses that were no good it
    waits, each time twice as long.

    Args:
        drafter: makes the guesses.
        n_most: tokens of a draft.
    """

    def __init__(self, drafter: Drafter, n_most: int) -> None:
        self._drafter = drafter
        self._n_most = n_most
        self._n_next = FIRST_DRAFT
        self._pause = self._n_waiting = 0  # tokens

    def propose(self, tokens: list[int], n_most: int) -> list[int]:
        """A draft of at most n_most tokens."""
        if self._n_waiting > 0:
            self._n_waiting -= 1
            return []
        n_most = min(n_most, self._n_most, self._n_next)
        return self._drafter.propose(tokens, n_most) if n_most > 0 else []

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """How the last draft fared."""
        self._n_next = max(FIRST_DRAFT, 2 * n_accepted)
        if n_accepted >= min(LEAST_ACCEPTED, n_drafted):
            self._pause = 0
        else:
            self._pause = min(2 * self._pause + 1, LONGEST_PAUSE)
        self._n_waiting = self._pause
