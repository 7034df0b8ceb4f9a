"""Several generations at a time on one engine, from threads and from tasks: each as if it were alone."""

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import pykvq

PROMPTS = ["the", "a long time ago", "x" * 100, "1 2 3 4"]


@pytest.fixture(scope="module")
def model(tiny_llama):
    with pykvq.Model.open(tiny_llama) as model:
        yield model


@pytest.fixture
def engine(model):
    with pykvq.Engine(model, seqs=4, logits=16, ctx=256, threads=1, kv="kivi4") as engine:
        yield engine


def options(i: int) -> dict:
    return {"max_tokens": 60, "sampler": pykvq.Sampler(temp=1, seed=i), "ignore_eog": True, "lookup": i % 2 == 0}


@pytest.fixture
def expected(engine) -> list[str]:
    return ["".join(pykvq.generate(engine, prompt, **options(i))) for i, prompt in enumerate(PROMPTS)]


def test_threads(engine, expected):
    def answer(i: int) -> str:
        return "".join(pykvq.generate(engine, PROMPTS[i], **options(i)))

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(answer, range(4))) == expected


def test_tasks(engine, expected):
    async def answer(i: int) -> str:
        async with pykvq.generate(engine, PROMPTS[i], **options(i)) as generation:
            return "".join([piece async for piece in generation])

    async def all_answers() -> list[str]:
        return await asyncio.gather(*map(answer, range(4)))

    assert asyncio.run(all_answers()) == expected
    assert engine.stats.n_seq_open == 0


def test_cancelling_one_leaves_the_others(engine, expected):
    generations = [pykvq.generate(engine, prompt, **options(i)) for i, prompt in enumerate(PROMPTS)]
    texts = [""] * 4

    def answer(i: int) -> None:
        for piece in generations[i]:
            texts[i] += piece
            if i == 3:
                generations[2].cancel()

    threads = [threading.Thread(target=answer, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts[i] for i in (0, 1, 3)] == [expected[i] for i in (0, 1, 3)]
    assert expected[2].startswith(texts[2])


def test_a_cancelled_task_gives_its_sequence_back(engine):
    async def begin(has_begun: asyncio.Event) -> None:
        async with pykvq.generate(engine, "the", max_tokens=200, ignore_eog=True) as generation:
            async for _ in generation:
                has_begun.set()

    async def cancel() -> None:
        task = asyncio.create_task(begin(has_begun := asyncio.Event()))
        await has_begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    gc.collect()
    assert engine.stats.n_seq_open == 0


def test_cancelled_before_it_begins(engine):
    generation = pykvq.generate(engine, "the", ignore_eog=True)
    generation.cancel()
    assert list(generation) == []
    assert generation.result.finish_reason == "cancelled"
    assert engine.stats.n_seq_open == 0
