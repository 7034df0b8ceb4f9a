"""The report's tables are what its script makes of the result files; nothing in them is typed by hand."""

import importlib.util
import json
from pathlib import Path

import pytest

import pykvq

BENCH = Path(__file__).parents[2] / "tools" / "bench"


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", BENCH / "report.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_what_the_script_writes(report):
    for page in report.PAGES:
        assert report.render(page.read_text()) == page.read_text(), f"run python tools/bench/report.py: {page.name}"


def test_every_part_stands_on_a_page(report):
    pages = "".join(page.read_text() for page in report.PAGES)
    for name in report.PARTS:
        assert f"<!-- {name} -->\n" in pages


def test_a_changed_figure_changes_the_page(report, monkeypatch, tmp_path):
    for path in BENCH.glob("*.json*"):
        (tmp_path / path.name).write_text(path.read_text())
    path = tmp_path / "kv_quality_smollm2.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "mean_kl": row["mean_kl"] + 1}) + "\n" for row in rows))
    monkeypatch.setattr(report, "HERE", tmp_path)
    page = (BENCH / "REPORT.md").read_text()
    assert report.render(page) != page


def test_an_unknown_table_is_an_error(report):
    with pytest.raises(KeyError, match="nonsense"):
        report.render("<!-- nonsense -->\n<!-- end -->")


def test_types_that_small_models_should_not_use_are_those_that_were_measured_so(report):
    """The warning's rule: another likeliest token more than once in ten, on some model of under SMALL parameters."""
    small = [row for row in report.divergences(ctx=2048, batch=64) if report.short(row) in report.SMALL]
    rows = [row for row in small if "/" not in row["kv"] and not row["kv"].startswith("llama.cpp")]
    unfit = {row["kv"] for row in rows if row["same_top"] < 0.9}
    assert unfit == {kv.name for kv in pykvq.kv_types() if kv.instead}
    loss = {(report.short(row), row["kv"]): row["mean_kl"] for row in rows}
    for kv in pykvq.kv_types():
        for model in report.SMALL:
            if kv.instead and (model, kv.name) in loss and (model, kv.instead) in loss:
                assert loss[model, kv.instead] < loss[model, kv.name]
