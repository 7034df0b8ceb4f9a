"""The types of the public API: a user's program passes pyright in strict mode, and a wrong one does not."""

import json
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import pykvq

PROGRAM = '''
"""Uses every part of the API."""

import asyncio

import numpy as np
import numpy.typing as npt

import pykvq


def nothing_is_untyped(model: pykvq.Model, kv: pykvq.KVTypeName) -> None:
    info: pykvq.ModelInfo = model.info
    tokens: list[int] = model.tokenizer.encode("text", parse_special=True)
    text: str = model.tokenizer.decode(tokens, skip_special=True)
    plan: pykvq.Plan = pykvq.plan(model, ctx=info.n_ctx_train, kv=kv, kv_layers="0:f16")
    types: list[pykvq.KVType] = pykvq.kv_types()
    with pykvq.Engine(model, seqs=2, kv="kivi2", kv_sink=64, logits=16) as engine, engine.sequence() as sequence:
        n_reused: int = sequence.sync(tokens)
        with engine.use():
            while sequence.n_pending:
                engine.step([sequence])
            logits: npt.NDArray[np.float32] = sequence.logits()
            top, logprobs = sequence.top_logprobs(5)
            best: np.int64 = top[0]
            likeliest: np.float32 = logprobs[0]
        fork: pykvq.Sequence = sequence.fork()
        token: int = fork.sample(pykvq.Sampler(temp=0.7, logit_bias={5: 1.0}))
        fork.push([token])
        layers: list[pykvq.KVLayer] = fork.kv_layers()
        stats: pykvq.Stats = engine.stats
        print(text, plan.n_kv_bytes, types[0].summary, n_reused, logits.shape, best, likeliest, layers, stats)
        generation: pykvq.Generation = pykvq.generate(sequence, tokens, stop=["end"], lookup=True, logprobs=3)
        pieces: list[str] = list(generation)
        result: pykvq.GenerationResult = generation.result
        reason: pykvq.FinishReason = result.finish_reason
        first: pykvq.TokenLogprobs = result.logprobs[0]
        print(pieces, reason, first.logprob, first.top_tokens[0], result.acceptance)
        with pykvq.chat(engine, system="terse", answers={"regex": "yes|no"}) as talk:
            said: list[str] = [piece.text for piece in talk.ask("Is it?") if not piece.is_thinking]
            print(said, talk.messages)


async def stream(talk: pykvq.Conversation) -> str:
    return "".join([piece.text async for piece in talk.ask_async("Why?")])


async def answer(engine: pykvq.Engine) -> str:
    async with pykvq.generate(engine, "text", json_schema={"type": "object"}) as generation:
        return "".join([piece async for piece in generation])


async def both(engine: pykvq.Engine) -> tuple[str, str]:
    return await asyncio.gather(answer(engine), answer(engine))
'''


def pyright(folder: Path) -> list[str]:
    """What it has to say, of the installed package."""
    if shutil.which("pyright") is None:
        pytest.skip("pyright is not installed")
    package = Path(pykvq.__file__).parent.parent
    config = {"typeCheckingMode": "strict", "reportMissingModuleSource": False, "extraPaths": [str(package)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = ["pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    return [f"{d['range']['start']['line'] + 1}: {d['message']}" for d in report["generalDiagnostics"]]


def test_a_strict_program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text('import pykvq\n\nx: int = pykvq.Model.open("a").info.arch\n')
    faults = pyright(tmp_path)
    assert len(faults) == 1, faults
    assert faults[0].startswith("3: ")


def test_names_of_kv_types():
    assert list(typing.get_args(pykvq.KVTypeName)) == [kv.name for kv in pykvq.kv_types()]


def test_every_public_name_is_documented_and_typed():
    for name in pykvq.__all__:
        thing = getattr(pykvq, name)
        if typing.get_origin(thing) is typing.Literal:
            continue
        assert thing.__doc__, name
        for attribute, value in vars(thing).items() if isinstance(thing, type) else ():
            if not attribute.startswith("_") and callable(value):
                assert value.__doc__, f"{name}.{attribute}"
                assert "return" in value.__annotations__, f"{name}.{attribute}"
