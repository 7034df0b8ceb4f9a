"""The committed comparison with llama.cpp: what it promises, and that the page shows it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from compare_quantize import TYPES, with_tables

from pykvq.results import read_rows

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tools/bench").glob("quantize_*.jsonl"))
ROWS = [row for file in FILES for row in read_rows(file)]


def test_the_page():
    page = (ROOT / "docs/quantization.md").read_text()
    command = "python tools/compare_quantize.py table docs/quantization.md tools/bench/quantize_*.jsonl"
    assert page == with_tables(page, FILES), f"run {command}"


@pytest.mark.parametrize("name", TYPES)
def test_no_worse_than_llama_cpp(name):
    """Perplexity within 1%, or within what chance explains; no tensor with a larger error; and no slower."""
    quality = [row for row in ROWS if (row["task"], row["type"]) == ("quality", name)]
    speed = [row for row in ROWS if (row["task"], row["type"]) == ("speed", name)]
    assert quality
    assert speed
    for row in quality:
        room = max(0.01, 2 * row["perplexity_over_llama.cpp_error"])
        assert row["perplexity_over_llama.cpp"] <= 1 + room
        if not row["setting"]["imatrix"]:  # with importance the plain error is not what is made small
            assert row["worst_rmse_over_llama.cpp"]["ratio"] <= 1.001
    for row in speed:
        assert row["times_as_fast"] >= 1
