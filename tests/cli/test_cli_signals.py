"""Ctrl-C, a reader that goes away, and streaming: what only a real process can show."""

import json
import signal
import subprocess
import time

import pytest
from command import COMMAND, environment

ENDLESS = ("--prompt", "the", "--ignore-eos", "--max-tokens", "100000000", "--ctx", "500000")


@pytest.fixture
def start():
    """Starts commands, and ends what a failed test leaves."""
    processes = []

    def begin(*arguments):
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            cwd="/",
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def test_text_streams_and_interrupt_keeps_it(start, tiny_llama):
    process = start("generate", tiny_llama, *ENDLESS)
    first = process.stdout.read(1)  # comes while the rest is still being made
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(first + out) > 1
    lines = err.decode().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("prompt: ")
    assert "(cancelled)" in lines[0]


def test_interrupt_inside_the_prompt(start, tiny_llama, tmp_path):
    (tmp_path / "long").write_text("x" * 100_000)
    process = start("generate", tiny_llama, "-f", tmp_path / "long", "--ctx", "200000", "--raw")
    time.sleep(2)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - begin < 20
    assert "Traceback" not in err.decode()


def test_interrupt_with_json_prints_what_there_is(start, tiny_llama):
    process = start("generate", tiny_llama, *ENDLESS, "--json")
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    record = json.loads(out)
    assert record["finish_reason"] == "cancelled"
    assert record["tokens"]


def test_reader_that_goes_away(start, tiny_llama):
    process = start("generate", tiny_llama, *ENDLESS)
    process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert err == b""
