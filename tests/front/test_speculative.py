"""Speculative decoding: the same tokens as without it, whatever is guessed, and all that is reported about it."""

import random
import sys

import pytest

import pykvq
from pykvq.speculative import LONGEST_PAUSE, PromptLookup, Speculation

FREE = {"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
SAMPLERS = {
    "greedy": {"temp": 0.0},
    "default": {},
    "free": FREE,
    "penalties": FREE | {"repeat_penalty": 1.3, "frequency_penalty": 0.2, "dry_multiplier": 0.8},
    "mirostat 2": FREE | {"mirostat": 2},
    "xtc": FREE | {"xtc_probability": 0.5, "xtc_threshold": 0.05},
}
PROMPT = "the cat sat on the mat, the cat sat on the mat, the cat sat"


@pytest.fixture(scope="module")
def model(tiny_llama):
    with pykvq.Model.open(tiny_llama) as model:
        yield model


class Oracle:
    """A drafter that is right as often as told."""

    answers: list[int] = []  # noqa: RUF012
    right = 0.8
    rng = random.Random(1)

    def __init__(self, n_match: int) -> None:
        pass

    def propose(self, tokens: list[int], n_most: int) -> list[int]:
        n_done = len(tokens) - self.n_prompt
        known = self.answers[n_done : n_done + self.rng.randint(0, n_most)]
        return [token if self.rng.random() < self.right else self.rng.randrange(256) for token in known]


@pytest.fixture
def oracle(monkeypatch):
    monkeypatch.setattr(sys.modules["pykvq.generate"], "PromptLookup", Oracle)
    return Oracle


def run(model, sampler, oracle=None, **options):
    """The tokens, the text, how it ended, and what the sequence then holds."""
    options = {"kv": "f16", "max_tokens": 150, "prompt": PROMPT} | options
    kv, prompt = options.pop("kv"), options.pop("prompt")
    with pykvq.Engine(model, ctx=256, logits=16, kv=kv, threads=1) as engine, engine.sequence() as sequence:
        generation = pykvq.generate(sequence, prompt, sampler=pykvq.Sampler(**sampler), **options)
        text = "".join(generation)
        result = generation.result
        assert 0 <= result.n_accepted <= result.n_drafted
        assert result.n_ctx_used == len(sequence)
        return result, (result.tokens, text, result.finish_reason, sequence.tokens)


@pytest.mark.parametrize("kv", ["f16", "kivi2", "turbo3", "tier2"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_lookup_changes_nothing(model, sampler, kv):
    options = {"kv": kv, "ignore_eog": True}
    _, plain = run(model, SAMPLERS[sampler] | {"seed": 4}, **options)
    for lookup in (True, 1):
        result, fast = run(model, SAMPLERS[sampler] | {"seed": 4}, lookup=lookup, **options)
        assert fast == plain
    assert result.n_drafted > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guesses_change_nothing(model, oracle, sampler):
    """Right, wrong and half right ones, for many seeds: so every text has the probability that it has without."""
    oracle.n_prompt = len(model.tokenizer.encode(PROMPT))
    n_accepted = 0
    for seed in range(12):
        options = {"kv": ["f16", "kivi4"][seed % 2], "ignore_eog": seed % 3 == 0}
        _, plain = run(model, SAMPLERS[sampler] | {"seed": seed}, **options)
        oracle.answers, oracle.right = plain[0], [1.0, 0.9, 0.5][seed % 3]
        result, fast = run(model, SAMPLERS[sampler] | {"seed": seed}, lookup=True, **options)
        assert fast == plain
        n_accepted += result.n_accepted
    assert n_accepted > 100


@pytest.mark.parametrize("end", ["stop", "length", "context", "tokens"])
def test_ends_are_the_same(model, oracle, end):
    """In the middle of a draft that is right."""
    oracle.n_prompt = len(model.tokenizer.encode(PROMPT))
    oracle.right = 1.0
    result, plain = run(model, {"temp": 1.0, "seed": 1}, ignore_eog=True, max_tokens=400)
    oracle.answers = plain[0]
    options = {
        "stop": {"stop": result.text[37:41]},
        "length": {"max_tokens": 41},
        "context": {"max_tokens": 1000},
        "tokens": {"max_tokens": 1},
    }[end]
    for lookup in (False, True):
        _, found = run(model, {"temp": 1.0, "seed": 1}, lookup=lookup, ignore_eog=True, **options)
        plain = plain if lookup else found
        assert found == plain
    assert found[2] == ("stop" if end == "stop" else "length")


def test_everything_right_is_accepted(model, oracle):
    _, plain = run(model, {"temp": 0.0}, ignore_eog=True)
    oracle.n_prompt, oracle.answers, oracle.right = len(model.tokenizer.encode(PROMPT)), plain[0], 1.0
    result, fast = run(model, {"temp": 0.0}, lookup=True, ignore_eog=True)
    assert fast == plain
    assert result.n_accepted == result.n_drafted > 50
    assert result.acceptance == 1.0


def test_a_draft_model_changes_nothing(model, tiny_llama):
    with pykvq.Model.open(tiny_llama) as small:  # the same weights: always right where it is sure
        for sampler in ({"temp": 0.0}, FREE | {"seed": 5}):
            _, plain = run(model, sampler, ignore_eog=True)
            result, fast = run(model, sampler, draft=small, draft_tokens=4, ignore_eog=True)
            assert fast == plain
        with pykvq.Engine(small, ctx=512) as engine, engine.sequence() as sequence:
            result, fast = run(model, {"temp": 0.0}, draft=sequence, ignore_eog=True)
            assert fast == run(model, {"temp": 0.0}, ignore_eog=True)[1]
            assert result.n_accepted == result.n_drafted


def test_a_draft_model_with_a_short_context(model, tiny_llama):
    with pykvq.Model.open(tiny_llama) as small, pykvq.Engine(small, ctx=80) as engine:
        assert (
            run(model, {"temp": 0.0}, draft=engine, ignore_eog=True)[1] == run(model, {"temp": 0.0}, ignore_eog=True)[1]
        )


def test_wrong_options(model):
    for options, sentence in (
        ({"lookup": True, "draft": model}, "exclude each other"),
        ({"lookup": True, "draft_tokens": 16}, "draft_tokens: 16, expected 1 to 15"),
        ({"lookup": -1}, "lookup: -1 tokens to match"),
    ):
        with pytest.raises(pykvq.ArgumentError, match=sentence):
            pykvq.generate(model, "the", **options)
    with pykvq.Engine(model) as engine, pytest.raises(pykvq.ArgumentError, match="made with logits=16"):
        pykvq.generate(engine, "the", lookup=True)


def test_lookup():
    lookup = PromptLookup(2)
    assert lookup.propose([1, 2], 5) == []
    assert lookup.propose([1, 2, 3, 4, 1, 2], 5) == [3, 4, 1, 2, 3]
    assert lookup.propose([1, 2, 3, 4, 1, 2, 5, 1, 2], 2) == [5, 1]  # what followed last
    assert lookup.propose([1, 2, 3, 4, 1, 2, 5, 1, 2, 7, 7, 7], 3) == [7, 7, 7]
    assert PromptLookup(3).propose([1], 5) == []


def test_bad_guesses_are_followed_by_a_pause():
    speculation = Speculation(PromptLookup(1), 4)
    tokens = [1, 2, 1]
    for pause in (1, 3, 7, 15, 31, LONGEST_PAUSE, LONGEST_PAUSE):
        assert speculation.propose(tokens, 9) == [2, 1, 2, 1]
        speculation.learn(4, 0)
        for _ in range(pause):
            assert speculation.propose(tokens, 9) == []
    assert speculation.propose(tokens, 9)
    speculation.learn(4, 3)
    assert speculation.propose(tokens, 2) == [2, 1]


def test_drafts_grow_with_what_was_right():
    speculation = Speculation(PromptLookup(1), 15)
    lengths = []
    for n_accepted in (5, 10, 15, 4, 0):
        lengths.append(len(speculation.propose([1, 2, 1], 99)))
        speculation.learn(lengths[-1], n_accepted)
    assert lengths == [5, 10, 15, 15, 8]
