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
    """Of the model that was never quantized, perplexity within 1%. Of all: divergence, each tensor's error, speed."""
    quality = [row for row in ROWS if (row["task"], row["type"]) == ("quality", name)]
    assert [row for row in quality if "wikitext-4m" in row["model"]["file"]]
    for row in quality:
        if "wikitext-4m" in row["model"]["file"]:
            assert row["perplexity_over_llama.cpp"] <= 1.01
        assert row["pykvq"]["mean_kl"] <= 1.02 * row["llama.cpp"]["mean_kl"]
        if not row["setting"]["imatrix"]:  # with importance the plain error is not what is made small
            assert row["worst_rmse_over_llama.cpp"]["ratio"] <= 1.001
    speed = [row for row in ROWS if (row["task"], row["type"]) == ("speed", name)]
    assert speed
    for row in speed:
        assert min(row["times_as_fast"], row["times_as_fast_cpu"]) >= 1
