"""tools/compare_llamacpp.py: how it asks llama-bench, and what it reads of the answer."""

import argparse
import importlib.util
import json
import stat
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "compare_llamacpp.py"
RECORDED = Path(__file__).with_name("llama_bench.jsonl").read_text()  # llama-bench -o jsonl on an H200


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("compare_llamacpp", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SPEC = {
    **{"path": "model.gguf", "program": "llama.cpp", "kv": "q4_0", "device": "cuda", "llama_bench": "llama-bench"},
    **{"n_threads": 8, "n_batch": 2048, "n_prefill": 512, "n_decode": 64, "depths": [0, 32768], "prefill_depths": [0]},
}


def test_it_asks_for_what_pykvq_measures(tool):
    prefill, decode = tool.llama_bench_commands(SPEC)
    for command in (prefill, decode):
        assert command[:3] == ["llama-bench", "-m", "model.gguf"]
        options = dict(zip(command[1::2], command[2::2], strict=True))
        assert (options["-ctk"], options["-ctv"], options["-fa"], options["-r"]) == ("q4_0", "q4_0", "1", "1")
        assert (options["-b"], options["-ub"], int(options["-ngl"]) > 1000) == ("2048", "2048", True)
        assert "-dev" not in options
    assert prefill[-6:] == ["-p", "512", "-n", "0", "-d", "0"]
    assert decode[-6:] == ["-p", "0", "-n", "64", "-d", "0,32768"]
    on_cpu = tool.llama_bench_commands({**SPEC, "device": "cpu"})[0]
    assert on_cpu[on_cpu.index("-dev") + 1] == "none"


def test_it_reads_a_recorded_answer(tool):
    result = tool.read_llama_bench("warning: something\n" + RECORDED, "cuda")
    assert result["facts"]["gpu_info"] == "NVIDIA H200"
    assert result["seconds"].keys() == {"prefill@0", "decode@0", "prefill@32768", "decode@32768"}
    assert 512 / result["seconds"]["prefill@0"] == pytest.approx(9546, rel=0.02)  # its own avg_ts
    assert result["peak_bytes"] is None


def test_a_program_without_cuda_is_a_sentence(tool):
    with pytest.raises(SystemExit, match="built without CUDA; its backends are CPU"):
        tool.read_llama_bench(RECORDED.replace('"backends": "CUDA"', '"backends": "CPU"'), "cuda")


def test_a_comparison_with_a_program_by_its_path(tool, tiny_llama, tmp_path):
    """In turns, in processes of their own; the table has no memory of llama-bench."""
    program = tmp_path / "llama-bench"
    lines = [
        json.dumps({**json.loads(RECORDED.splitlines()[0]), "n_prompt": n_prompt, "n_gen": 4 - n_prompt, "n_depth": 0})
        for n_prompt in (4, 0)
    ]
    program.write_text(f"#!/bin/sh\ncase \"$*\" in *'-p 0'*) echo '{lines[1]}';; *) echo '{lines[0]}';; esac\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    options = {"batch": 64, "threads": 1, "prefill": 4, "decode": 4, "depths": [0], "prefill_depths": [0]}
    args = argparse.Namespace(
        model=tiny_llama, device="cpu", llama_bench=program, repeats=2, repeat_from=None, **options
    )
    comparison = tool.compare(args, "kivi4", "q4_0")
    assert comparison["spec"]["llama_bench"] == "llama-bench"
    assert [len(runs) for runs in comparison["runs"].values()] == [2, 2]
    table = tool.table(comparison)
    assert "| tokens/s | pykvq kivi4 | llama.cpp q4_0 | ratio |" in table
    assert "peak MiB" not in table
