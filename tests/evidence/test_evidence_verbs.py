"""`pykvq eval`, `bench`, `plan`, `kv` and `plot` as processes."""

import csv
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pykvq


def run(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "pykvq", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=120)
    return done.returncode, done.stdout, done.stderr


def lines(*arguments: object) -> list[dict]:
    code, out, err = run(*arguments)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_eval_prints_an_object_per_type(tiny_llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the thing that " * 200)
    rows = lines(
        "eval", tiny_llama, "--text", text, "--kv", "f16,turbo3", "--ctx", 256, "--chunks", 2, "--batch", 64, "--json"
    )
    assert [(row["kv"], row["n_tokens"]) for row in rows] == [("f16", 256), ("turbo3", 256)]
    assert rows[0]["max_kl"] == 0 < rows[1]["mean_kl"]
    assert str(tmp_path) not in rows[0]["command"]


def test_an_interrupted_sweep_goes_on_where_it_ended(tiny_llama, tmp_path):
    """Types are measured four at a time; Ctrl-C comes when the first four are done."""
    (tmp_path / "text.txt").write_text("the thing that " * 4000)
    types = ["q8_0", "q4_0", "kivi4", "kivi2", "turbo4", "turbo3"]
    command = ["eval", tiny_llama, "--text", tmp_path / "text.txt", "--kv", ",".join(types), "--ctx", 512]
    command = [*map(str, command), "--chunks", "24", "--batch", "64", "--save", str(tmp_path / "rows"), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pykvq", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
    )
    path = tmp_path / "rows"
    while process.poll() is None and not (path.exists() and path.read_text().count("\n") == 4):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.decode() == f"interrupted; 4 new rows are kept in {path}\n"
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    again = lines(*command)
    assert again[:4] == kept
    assert [row["kv"] for row in again] == types


def test_the_default_text_comes_with_python(tiny_llama):
    (row,) = lines("eval", tiny_llama, "--kv", "f16", "--ctx", 256, "--chunks", 1, "--batch", 64, "--json")
    assert row["setting"]["text"] == "pydoc_data.topics"
    assert row["max_kl"] == 0


def test_a_device_that_is_not_there_is_a_sentence(tiny_llama):
    code, out, err = run("eval", tiny_llama, "--kv", "q8_0", "--device", "abacus")
    assert (code, out) == (1, "")
    assert err.startswith("pykvq: device 'abacus'")


def test_too_little_text_is_a_sentence(tiny_llama, tmp_path):
    (tmp_path / "text.txt").write_text("short")
    code, out, err = run("eval", tiny_llama, "--text", tmp_path / "text.txt")
    assert (code, out) == (1, "")
    assert err.startswith("pykvq: text: ")
    assert "Traceback" not in err


def test_an_unknown_type_is_a_sentence(tiny_llama):
    for verb in ("eval", "bench", "plan"):
        code, _, err = run(verb, tiny_llama, "--kv", "kivi22")
        assert code == 1
        assert "did you mean 'kivi2'" in err


def test_results_become_pictures(tiny_llama, tmp_path):
    pytest.importorskip("matplotlib")
    quality, speed = tmp_path / "quality.jsonl", tmp_path / "speed.jsonl"
    for task in ("divergence", "needle"):
        code, _, err = run(
            "eval", tiny_llama, "--task", task, "--kv", "q8_0,kivi2", "--ctx", 256, "--chunks", 1, "--batch", 64,
            "--lengths", 400, "--depths", "0,1", "--samples", 1, "--save", quality,
        )  # fmt: skip
        assert code == 0, err
    code, out, err = run(
        "bench", tiny_llama, "--kv", "f16", "-d", "64,128", "-p", 0, "-n", 4, "--save", speed, "--format", "csv"
    )
    assert code == 0, err
    assert [row["n_depth"] for row in csv.DictReader(io.StringIO(out))] == ["64", "128"]
    code, out, err = run("plot", quality, speed, "-o", tmp_path / "plots")
    assert code == 0, err
    assert {Path(line).name for line in out.split()} == {"quality.svg", "needle.svg", "speed.svg", "memory.svg"}
    assert all((tmp_path / "plots" / name).read_text().startswith("<?xml") for name in ("quality.svg", "needle.svg"))


def test_results_of_a_gpu_become_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {
            "program": program,
            "kv": kv,
            "n_seq": 1,
            "depth": depth,
            "prompt": prompt,
            "tokens_per_second": 100 - depth / 400,
        }
        for program, kv in (("pykvq", "f16"), ("pykvq", "kivi2"), ("llama.cpp", "f16"))
        for depth in (0, 8192, 32768)
        for prompt in (0, 512)
    ]
    (tmp_path / "gpu.json").write_text(json.dumps({"device": "A GPU, driver 1", "what": "a model; how", "rows": rows}))
    code, out, err = run("plot", tmp_path / "gpu.json", "-o", tmp_path)
    assert (code, Path(out.strip()).name) == (0, "speed_gpu.svg"), err
    (tmp_path / "gpu.json").write_text("{}")
    code, _, err = run("plot", tmp_path / "gpu.json")
    assert code == 1
    assert "not a JSON object with rows" in err


def test_bench_takes_steps_as_large_as_the_device_likes(tiny_llama):
    command = ["bench", tiny_llama, "--depths", 600, "-p", 0, "-n", 1, "-r", 1]
    assert [row["n_batch"] for row in lines(*command, "--json")] == [512]
    assert [row["n_batch"] for row in lines(*command, "--batch", 64, "--json")] == [64]
    head, _, row, *_ = run(*command)[1].splitlines()
    columns = dict(zip(map(str.strip, head.split("|")), map(str.strip, row.split("|")), strict=True))
    assert columns["batch"] == "512"


def test_plot_without_rows_is_a_sentence(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    code, _, err = run("plot", tmp_path / "empty.jsonl")
    assert code == 1
    assert "no rows" in err


def test_kv_lists_all_types(tiny_llama):
    rows = lines("kv", tiny_llama, "--memory", "64MiB", "--json")
    assert [row["kv"] for row in rows] == [kv.name for kv in pykvq.kv_types()]
    by_name = {row["kv"]: row for row in rows}
    assert by_name["f16"]["bits_k"] == 16
    assert by_name["f16"]["longest_context"] < by_name["q8_0"]["longest_context"] < by_name["kivi2"]["longest_context"]
    assert all(row["summary"] for row in rows)
    assert run("kv")[0] == 0


def test_plan_shows_what_fits(tiny_llama):
    (row,) = lines("plan", tiny_llama, "--kv", "kivi2", "--ctx", 512, "--memory", "64MiB", "--json")
    assert row["n_total_bytes"] == row["n_weight_bytes"] + row["n_kv_bytes"] + row["n_scratch_bytes"]
    assert row["longest_context"] > 512
    assert row["largest_batch"] > 1
    (free,) = lines("plan", tiny_llama, "--kv", "kivi2", "--memory", "auto", "--json")
    assert 64 << 20 < free["n_memory_bytes"] <= lines("doctor", "--json")[0]["memory"]["n_bytes"]
    assert free["longest_context"] > row["longest_context"]
    assert "MiB" in run("kv", tiny_llama, "--memory", "auto")[1].splitlines()[0]
    code, _, err = run("plan", tiny_llama, "--memory", "lots")
    assert code == 1
    assert "memory 'lots'" in err
