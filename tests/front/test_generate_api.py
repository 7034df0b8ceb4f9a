"""pykvq.generate: pieces of text, how a generation ends, what it reports."""

import asyncio
import threading

import pytest

import pykvq
from pykvq.generate import _find_stop, _n_held

GREEDY = pykvq.Sampler(temp=0)


@pytest.fixture(scope="module")
def model(tiny_llama):
    with pykvq.Model.open(tiny_llama) as model:
        yield model


def run(target, prompt="the", **options) -> pykvq.GenerationResult:
    options = {"max_tokens": 20, "sampler": pykvq.Sampler(temp=0), "ignore_eog": True} | options
    generation = pykvq.generate(target, prompt, **options)
    assert "".join(generation) == generation.result.text
    return generation.result


def test_same_as_by_hand(model):
    result = run(model)
    with pykvq.Engine(model) as engine, engine.sequence() as sequence:
        sequence.sync(model.tokenizer.encode("the"))
        tokens = []
        for _ in range(20):
            while sequence.n_pending:
                engine.step([sequence])
            tokens.append(sequence.sample(GREEDY))
            sequence.push(tokens[-1:])
    assert result.tokens == tokens
    assert (result.finish_reason, result.n_prompt_tokens, result.n_ctx_used) == ("length", 2, 21)
    assert result.n_kv_bytes > 0
    assert result.prompt_tokens_per_second > 0
    assert result.decode_tokens_per_second > 0


def test_token_ids_are_a_prompt(model):
    assert run(model, model.tokenizer.encode("the")).tokens == run(model).tokens


def test_same_seed_same_tokens(model):
    one, two, three = (run(model, sampler=pykvq.Sampler(temp=1, seed=seed)).tokens for seed in (5, 5, 6))
    assert one == two
    assert one != three


def test_sequence_keeps_the_conversation(model):
    with pykvq.Engine(model) as engine, engine.sequence() as sequence:
        first = run(sequence)
        assert sequence.tokens == [*model.tokenizer.encode("the"), *first.tokens[:-1]]
        second = run(sequence, [*sequence.tokens, first.tokens[-1]])
        assert second.n_reused_tokens == 21
        assert first.tokens + second.tokens == run(model, max_tokens=40).tokens


def test_ends_at_an_end_token(model):
    eog = min(model.tokenizer.eog_ids)
    for seed in range(200):  # until one draws it
        options = {"sampler": pykvq.Sampler(temp=2, top_k=0, top_p=1, min_p=0, seed=seed), "max_tokens": 40}
        result = run(model, ignore_eog=False, **options)
        if result.finish_reason == "eog":
            break
    assert result.tokens[-1] in model.tokenizer.eog_ids
    assert not set(result.tokens[:-1]) & model.tokenizer.eog_ids
    assert model.tokenizer.token_text(eog) not in result.text


def test_ends_when_the_context_is_full(model):
    result = run(model, ctx=64, max_tokens=1000)
    assert (result.finish_reason, result.n_ctx_used) == ("length", 64)


def test_ends_before_a_stop_string(model):
    text = run(model).text
    stop = text[4:7]
    cut = run(model, stop=["never", stop])
    assert cut.finish_reason == "stop"
    assert cut.text == text[: text.index(stop)]
    assert run(model, stop=stop).text == cut.text


@pytest.mark.parametrize(
    ("text", "stop", "n_held", "found"),
    [
        ("", ("ab",), 0, None),
        ("xa", ("ab",), 1, None),
        ("xab", ("ab",), 0, 1),
        ("aba", ("abac", "bad"), 3, None),
        ("ab ba", ("bad", "ab"), 2, 0),
        ("abc", (), 0, None),
    ],
)
def test_stop_strings(text, stop, n_held, found):
    assert _n_held(text, stop) == n_held
    assert _find_stop(text, stop) == found


def test_cancel(model):
    generation = pykvq.generate(model, "the", max_tokens=400, sampler=GREEDY, ignore_eog=True)
    pieces = [next(generation)]
    threading.Thread(target=generation.cancel).start()
    pieces += generation
    generation.cancel()  # too late, and fine
    assert generation.result.finish_reason == "cancelled"
    assert "".join(pieces) == generation.result.text
    assert 1 <= len(generation.result.tokens) < 400


def test_early_end_frees_the_engine(model):
    from pykvq._ffi import lib

    before = lib.pykvq_allocated_bytes()
    with pykvq.generate(model, "the", sampler=GREEDY, ignore_eog=True) as generation:
        next(generation)
        assert lib.pykvq_allocated_bytes() > before
    assert lib.pykvq_allocated_bytes() == before
    pykvq.generate(model, "the").close()  # not even begun
    assert lib.pykvq_allocated_bytes() == before
    assert list(generation) == []


def test_async(model):
    async def collect() -> str:
        return "".join(
            [piece async for piece in pykvq.generate(model, "the", max_tokens=20, sampler=GREEDY, ignore_eog=True)]
        )

    assert asyncio.run(collect()) == run(model).text


def test_chat(model):
    tokens = model.chat_tokens([{"role": "user", "content": "the"}])
    assert model.tokenizer.decode(tokens) == "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    assert tokens[0] == model.tokenizer.bos_id


def test_chat_without_template(tiny_llama_without_template):
    with pykvq.Model.open(tiny_llama_without_template) as model:
        assert model.chat_template is None
        with pytest.raises(pykvq.UnsupportedError, match="no chat template"):
            model.chat_tokens([{"role": "user", "content": "the"}])


@pytest.mark.parametrize("prompt", ["", []])
def test_empty_prompt(model, prompt):
    with pytest.raises(pykvq.ArgumentError, match="prompt: it is empty"):
        pykvq.generate(model, prompt)


def test_prompt_longer_than_the_context(model):
    with pytest.raises(pykvq.FullError, match=r"prompt: 100 tokens do not fit the context of 64; .* trained for 512"):
        pykvq.generate(model, "x" * 100, ctx=64)


def test_options_for_an_engine_that_exists(model):
    with pykvq.Engine(model) as engine, pytest.raises(pykvq.ArgumentError, match="ctx can only be set for a model"):
        pykvq.generate(engine, "the", ctx=10)


def test_no_tokens_asked_for(model):
    with pytest.raises(pykvq.ArgumentError, match="max_tokens"):
        pykvq.generate(model, "the", max_tokens=0)
