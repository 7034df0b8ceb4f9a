"""Two processes on one GPU: each is told what is free, and neither dies of the other. `pytest -m cuda`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import tiny

import pykvq
from pykvq.capacity import longest_context
from pykvq.device import device_problem, memory

pytestmark = pytest.mark.cuda

# Does what it is told, line by line: [ctx] makes an engine and answers tokens that follow a prompt, or a sentence
PROCESS = """
import json, sys, pykvq
model = pykvq.Model.open(sys.argv[1])
engine = None
print("ready", flush=True)
for line in sys.stdin:
    if engine is not None:
        engine.close()
        engine = None
    try:
        engine = pykvq.Engine(model, device="cuda", ctx=json.loads(line), batch=64)
        with engine.sequence() as sequence:
            for token in range(100):
                sequence.push([token])
                engine.step([sequence])
            print(json.dumps({"top": int(sequence.logits()[-1].argmax())}), flush=True)
    except pykvq.PykvqError as error:
        print(json.dumps({"error": type(error).__name__, "sentence": str(error)}), flush=True)
"""


class Process:
    def __init__(self, model: Path) -> None:
        command = [sys.executable, "-c", PROCESS, str(model)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._read() == "ready\n"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def begin(self, ctx: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(ctx)}\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        return json.loads(self._read())

    def end(self) -> int:
        self._process.communicate(timeout=60)
        return self._process.returncode


@pytest.fixture
def path(tmp_path: Path) -> Path:
    if problem := device_problem("cuda"):
        pytest.skip(problem)
    return tiny.write(tmp_path / "model.gguf", n_layer=8, head_dim=128)


@pytest.fixture
def processes(path: Path) -> Iterator[list[Process]]:
    both = [Process(path), Process(path)]
    yield both
    assert [process.end() for process in both] == [0, 0]


def test_both_run(processes: list[Process]) -> None:
    for process in processes:
        process.begin(256)
    first, second = (process.answer() for process in processes)
    assert first == second
    assert "top" in first


def test_both_want_more_than_half_of_the_memory(path: Path, processes: list[Process]) -> None:
    """At the same time, so that it may be gone between look and allocation; what one gives back the other gets."""
    with pykvq.Model.open(path) as model:
        ctx = longest_context(model, memory("cuda").n_free * 6 // 10, {"device": "cuda", "batch": 64})
    for process in processes:
        process.begin(ctx)
    answers = [process.answer() for process in processes]
    winner, loser = (0, 1) if "top" in answers[0] else (1, 0)
    assert "top" in answers[winner]
    assert answers[loser]["error"] == "OutOfMemoryError"
    assert " MiB are free; the longest context that fits has " in answers[loser]["sentence"]
    processes[winner].begin(256)
    processes[winner].answer()
    processes[loser].begin(ctx)
    assert "top" in processes[loser].answer()
