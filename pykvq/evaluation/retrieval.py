"""Tasks that need the whole context: needles in a text, variables that follow each other, a long talk, a tool call.

In the manner of RULER: each case is a prompt that ends with the begin of the answer, and the answer. The answer is fed
as well, and is right if each of its tokens is the likeliest one there: what greedy decoding would have written.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..engine import Engine, EngineOptions
from ..errors import ArgumentError
from .metrics import log_softmax

if TYPE_CHECKING:
    import numpy.typing as npt

    from ..model import Model

Message: TypeAlias = dict[str, str]
_Score: TypeAlias = tuple[bool, float, float]  # answer right, part of its tokens right, loss per token

_NOUNS = [
    "anchor", "basket", "candle", "dragon", "engine", "feather", "garden", "hammer", "island", "jacket", "kettle",
]  # fmt: skip
_CITIES = [
    "Ankara", "Bergen", "Cairo", "Dublin", "Geneva", "Havana", "Lisbon", "Madrid", "Nairobi", "Oslo", "Prague",
]  # fmt: skip
_GREETING = "Some special magic numbers are hidden within the following text. Remember them.\n\n"


@dataclass(frozen=True)
class Case:
    """A question about a long context."""

    task: str
    length: int  # most tokens of prompt and answer
    depth: float  # where what is asked for stands: 0 at the begin, 1 at the end
    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class _Draft:
    """A case in words."""

    messages: list[Message]
    lead: str  # the begin of the answer, given to the model
    answer: str


# ---- the tasks: filler text, depth, random numbers -> a case in words ----


def _number(rng: random.Random) -> str:
    return str(rng.randrange(1_000_000, 10_000_000))


def _hide(filler: str, facts: Iterable[tuple[float, str]]) -> str:
    """Put each fact between two sentences, at its depth."""
    sentences = re.findall(r".+?(?:[.!?]\s+|\n+|$)", filler, re.DOTALL)
    for depth, fact in sorted(facts, reverse=True):
        sentences.insert(round(depth * len(sentences)), f"{fact}\n")
    return "".join(sentences)


def _ask_number(filler: str, noun: str, value: str, facts: list[tuple[float, str]]) -> _Draft:
    question = f"\n\nWhat is the special magic number for {noun} mentioned in the text?"
    content = _GREETING + _hide(filler, facts) + question
    return _Draft([{"role": "user", "content": content}], f"The special magic number for {noun} is", f" {value}.")


def _needle(filler: str, depth: float, rng: random.Random) -> _Draft:
    """One number."""
    noun, value = rng.choice(_NOUNS), _number(rng)
    return _ask_number(filler, noun, value, [(depth, f"The special magic number for {noun} is {value}.")])


def _multikey(filler: str, depth: float, rng: random.Random) -> _Draft:
    """One number of eight that are alike."""
    nouns = rng.sample(_NOUNS, 8)
    values = [_number(rng) for _ in nouns]
    depths = [depth, *(rng.random() for _ in nouns[1:])]
    facts = [f"The special magic number for {noun} is {value}." for noun, value in zip(nouns, values, strict=True)]
    return _ask_number(filler, nouns[0], values[0], list(zip(depths, facts, strict=True)))


def _tracking(filler: str, depth: float, rng: random.Random) -> _Draft:
    """Variables that are assigned to each other, spread from `depth` to the end; a second chain misleads."""
    names = ["".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5)) for _ in range(8)]
    values = [str(rng.randrange(10_000, 100_000)) for _ in range(2)]
    facts: list[tuple[float, str]] = []
    for chain, value in zip((names[:4], names[4:]), values, strict=True):
        for i, name in enumerate(chain):
            source = f"VAR {chain[i - 1]}" if i else value
            facts.append((depth + (1 - depth) * i / 4, f"VAR {name} = {source}"))
    question = f"\n\nWhich four variables are assigned the value {values[0]}, directly or through others? In order."
    content = "Remember the assignments that are hidden in the following text.\n\n" + _hide(filler, facts) + question
    lead = f"The four variables that are assigned the value {values[0]} are"
    return _Draft([{"role": "user", "content": content}], lead, f" {', '.join(names[:4])}.")


def _turns(filler: str, depth: float, rng: random.Random) -> _Draft:
    """A talk of six turns over a text; what was said between two of them is asked for at the end."""
    code, n_turns = _number(rng), 6
    size = -(-len(filler) // n_turns)
    parts = [filler[i * size : (i + 1) * size] for i in range(n_turns)]
    messages: list[Message] = []
    for i, part in enumerate(parts):
        fact = f" By the way, my locker code is {code}." if i == min(n_turns - 1, int(depth * n_turns)) else ""
        messages.append({"role": "user", "content": f"Here is part {i + 1} of a text.{fact}\n\n{part}"})
        messages.append({"role": "assistant", "content": f"I have read part {i + 1}."})
    messages.append({"role": "user", "content": "Thank you. What is my locker code?"})
    return _Draft(messages, "Your locker code is", f" {code}.")


def _tool(filler: str, depth: float, rng: random.Random) -> _Draft:
    """A function call in JSON, with arguments from a long text."""
    start, end = rng.sample(_CITIES, 2)
    example = (
        '{"name": "book_flight", "arguments": {"from": "Paris", "to": "Tokyo", "passengers": 2, "code": "1234567"}}'
    )
    value = {"from": start, "to": end, "passengers": rng.randrange(1, 9), "code": _number(rng)}
    system = f"You call functions. Answer with one JSON object and nothing else, for example:\n{example}"
    fact = (
        f"The next journey goes from {value['from']} to {value['to']} with {value['passengers']} passengers; "
        f"its booking code is {value['code']}."
    )
    content = f"{_hide(filler, [(depth, fact)])}\n\nBook the flight for the next journey that the text mentions."
    messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
    lead, answer = '{"name": "book_flight", "arguments":', f" {json.dumps(value)}}}"
    return _Draft(messages, lead, answer)


TASKS: dict[str, Callable[[str, float, random.Random], _Draft]] = {
    "needle": _needle,
    "multikey": _multikey,
    "tracking": _tracking,
    "turns": _turns,
    "tool": _tool,
}


# ---- cases ----


def make_cases(
    model: Model, task: str, text: str, *, lengths: Sequence[int], depths: Sequence[float], samples: int, seed: int
) -> list[Case]:
    """So many cases of a task for each length and depth, the same for every KV type.

    Args:
        task: a key of `TASKS`.
        text: what the contexts are filled with.

    Raises:
        ArgumentError: no such task, a length is too small for it, or the text too short.
    """
    if task not in TASKS:
        raise ArgumentError(f"task '{task}': unknown, expected one of {', '.join(TASKS)}")
    filler = model.tokenizer.encode(text, add_bos=False)
    return [
        _fit(model, task, filler, length, depth, f"{seed} {task} {length} {depth} {i}")
        for length in lengths
        for depth in depths
        for i in range(samples)
    ]


def _fit(model: Model, task: str, filler: list[int], length: int, depth: float, seed: str) -> Case:
    """The case with as much filler as the length allows; each seed takes another part of the text."""
    offset = random.Random(seed).randrange(max(1, len(filler) - length))
    n_filler = length
    while n_filler > 0:
        words = model.tokenizer.decode(filler[offset : offset + n_filler])
        prompt, answer = _tokens(model, TASKS[task](words, depth, random.Random(seed)))
        excess = len(prompt) + len(answer) - length
        if excess <= 0:
            if offset + n_filler > len(filler):
                raise ArgumentError(f"text: {len(filler)} tokens do not fill a context of {length}")
            return Case(task, length, depth, prompt, answer)
        n_filler -= excess
    raise ArgumentError(f"task '{task}': a context of {length} tokens is too small for it")


def _tokens(model: Model, draft: _Draft) -> tuple[list[int], list[int]]:
    """Prompt and answer; the answer begins where its letters change the tokens."""
    template = None if model.chat_template is None or model.chat_template.fallback else model.chat_template
    if template is not None:
        begin = template.render(draft.messages) + draft.lead
    else:
        begin = "\n\n".join([*(message["content"] for message in draft.messages), draft.lead])
    encode, add_bos = model.tokenizer.encode, None if template is None else False
    prompt = encode(begin, add_bos=add_bos, parse_special=True)
    whole = encode(begin + draft.answer, add_bos=add_bos, parse_special=True)
    n = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    return whole[:n], whole[n:]


# ---- runs ----


def retrieve(
    model: Model,
    cases: Sequence[Case],
    *,
    batch: int,
    options: EngineOptions,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Run cases through a cache.

    Args:
        batch: tokens fed in one step.
        options: of the engine, its KV setting among them.
        progress: is told how many tokens were fed since it was last told.

    Returns:
        how many answers were right, and tokens of them; the mean loss per token of the answers; the same by length and
        depth; the memory of the cache.

    Raises:
        PykvqError: the engine cannot be made, or logits are not finite.
    """
    ctx = max(len(case.prompt) + len(case.answer) for case in cases)
    batch = min(batch, ctx)
    scores: dict[tuple[int, float], list[_Score]] = {}
    n_logits = max(len(case.answer) for case in cases)
    options = {**options, "ctx": ctx, "seqs": 1, "batch": batch, "logits": min(n_logits, batch)}
    with Engine(model, **options) as engine, engine.sequence() as sequence:
        for case in cases:
            sequence.rewind(0)
            sequence.keep_logits(all_tokens=False)
            sequence.push(case.prompt)
            while sequence.n_pending:
                engine.step([sequence])
            rows = [sequence.logits()]
            sequence.keep_logits(all_tokens=True)
            sequence.push(case.answer[:-1])
            while sequence.n_pending:
                engine.step([sequence])
                rows.append(sequence.logits())
            scores.setdefault((case.length, case.depth), []).append(_score(np.concatenate(rows), case.answer))
            if progress:
                progress(len(case.prompt) + len(case.answer))
        plan, n_bad = engine.plan, engine.stats.n_kv_bad_elements
    return {
        **_mean([score for values in scores.values() for score in values]),
        "cells": [{"length": n, "depth": depth, **_mean(values)} for (n, depth), values in scores.items()],
        "bits_per_element": plan.kv_bits_per_element,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "n_bad_elements": n_bad,
    }


def _score(logits: npt.NDArray[np.float32], answer: list[int]) -> _Score:
    log_p = log_softmax(logits)
    right = log_p.argmax(axis=1) == answer
    return bool(right.all()), float(right.mean()), float(-log_p[np.arange(len(answer)), answer].mean())


def _mean(scores: Sequence[_Score]) -> dict[str, float]:
    correct, tokens_right, loss = np.mean(scores, axis=0)
    return {"n": len(scores), "correct": float(correct), "tokens_right": float(tokens_right), "loss": float(loss)}
