"""tools/kernel_speed.py: rows of the timer get their source, and take the place of older ones."""

import importlib.util
import json
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "kernel_speed.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("kernel_speed", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_say_where_they_come_from(tool, tmp_path):
    timer = tmp_path / "timer"
    timer.write_text('#!/bin/sh\necho \'{"kv": "kivi2", "n_threads": 2}\'\necho "f16 cannot"\n')
    timer.chmod(0o755)
    (row,) = tool.measure(timer, ["-j", "-t", "2", "kivi2", "f16"])
    assert (row["kv"], row["n_threads"]) == ("kivi2", 2)
    assert row["source"]["command"] == "attend_speed -j -t 2 kivi2 f16"
    assert {"commit", "date", "machine", "load"} <= row["source"].keys()
    assert "model" not in row["source"]


def test_new_rows_take_the_place_of_old_ones(tool):
    def row(kv, n_threads, ns):
        return {"kv": kv, "isa": "avx2", "n_threads": n_threads, "head_dim": 64, "n_rows": 3, "ns_l2": ns}

    rows = tool.merge([row("f16", 2, 1), row("f16", 1, 2), row("kivi2", 1, 3)], [row("f16", 1, 4), row("kivi2", 2, 5)])
    assert [(r["kv"], r["n_threads"], r["ns_l2"]) for r in rows] == [
        ("f16", 1, 4), ("kivi2", 1, 3), ("f16", 2, 1), ("kivi2", 2, 5),
    ]  # fmt: skip
    committed = [json.loads(line) for line in (TOOL.parent / "bench" / "cpu_kernels.jsonl").read_text().splitlines()]
    assert tool.merge(committed, []) == committed
