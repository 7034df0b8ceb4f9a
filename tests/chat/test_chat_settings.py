"""What /set changes, and how answers follow it."""

import asyncio
import json
import re

import pytest

import pykvq
from pykvq.chat.conversation import Conversation
from pykvq.chat.settings import Settings


@pytest.fixture
def talk(tiny_llama):
    with (
        pykvq.Model.open(tiny_llama) as model,
        pykvq.Engine(model, logits=16) as engine,
        engine.sequence() as sequence,
    ):
        yield Conversation(sequence, max_tokens=60)


def answer(talk) -> str:
    return "".join(piece.text for piece in talk.ask("the"))


def test_every_option_of_the_sampler(talk):
    settings = Settings(talk, temp=1.0)
    values = {"typical_p": "0.9", "xtc_probability": "0.5", "mirostat": "2", "logit_bias": "5:-inf,7:1.5", "seed": "3"}
    for name, value in values.items():
        settings.set(name, value)
    shown = settings.values()
    assert shown["logit_bias"] == {5: float("-inf"), 7: 1.5}
    assert (shown["typical_p"], shown["mirostat"], shown["seed"]) == (0.9, 2, 3)
    for name, value in (("logit_bias", "5"), ("mirostat", "2.5"), ("seed", "x"), ("typicalp", "1"), ("lookup", "3")):
        with pytest.raises(pykvq.ArgumentError):
            settings.set(name, value)
    assert settings.values() == shown


def test_answers_meet_what_is_set(talk, tmp_path):
    settings = Settings(talk, temp=1.0, seed=1)
    (tmp_path / "schema.json").write_text('{"enum": [[1, 2], {"a": null}]}')
    (tmp_path / "two.lark").write_text('start: "one" | "two"')
    settings.set("regex", "[ab]{5}")
    assert re.fullmatch("[ab]{5}", answer(talk))
    settings.set("json_schema", str(tmp_path / "schema.json"))
    assert settings.values()["regex"] is None  # one at a time
    assert json.loads(answer(talk)) in ([1, 2], {"a": None})
    settings.set("grammar", str(tmp_path / "two.lark"))
    assert answer(talk) in ("one", "two")
    with pytest.raises(pykvq.ArgumentError, match="regex"):
        settings.set("regex", "(")
    with pytest.raises(pykvq.FileError, match="missing"):
        settings.set("json_schema", str(tmp_path / "missing"))
    assert answer(talk) in ("one", "two")
    settings.set("grammar", "none")
    assert answer(talk) not in ("one", "two")


def test_lookup(talk):
    settings = Settings(talk, temp=0.0)
    plain = answer(talk)
    settings.set("lookup", "on")
    talk.clear()
    assert answer(talk) == plain
    assert settings.values()["lookup"] is True
    settings.set("lookup", "off")
    assert talk.options["lookup"] is False


def test_pykvq_chat(tiny_llama):
    with pykvq.Model.open(tiny_llama) as model:
        with pykvq.chat(
            model, sampler=pykvq.Sampler(temp=0), max_tokens=20, ctx=256, answers={"regex": "[a-z]{9}"}
        ) as talk:
            said = "".join(piece.text for piece in talk.ask("the"))
            assert re.fullmatch("[a-z]{9}", said)
            assert talk.messages[-1] == {"role": "assistant", "content": said}
            engine = talk.sequence.engine
        with pytest.raises(pykvq.ArgumentError, match="closed"):
            engine.sequence()
        with pykvq.Engine(model) as engine:
            with pykvq.chat(engine, system="terse"), pytest.raises(pykvq.FullError):
                engine.sequence()
            assert engine.stats.n_seq_open == 0
            with pytest.raises(pykvq.ArgumentError, match="ctx can only be set for a model"):
                pykvq.chat(engine, ctx=5)


def test_asking_in_tasks(talk):
    talk.sampler = pykvq.Sampler(temp=0)
    plain = answer(talk)
    talk.clear()

    async def ask() -> str:
        return "".join([piece.text async for piece in talk.ask_async("the")])

    async def begin(has_begun: asyncio.Event) -> None:
        async for _ in talk.ask_async("the"):
            has_begun.set()

    async def give_up() -> None:
        task = asyncio.create_task(begin(has_begun := asyncio.Event()))
        await has_begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert asyncio.run(ask()) == plain
    asyncio.run(give_up())
    talk.clear()
    assert asyncio.run(ask()) == plain
