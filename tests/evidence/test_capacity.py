"""Plans against what is really allocated, and what is said to fit."""

import pytest

import pykvq
from pykvq._ffi import lib
from pykvq.bench import Test as BenchTest
from pykvq.bench import bench, measure_bandwidth
from pykvq.capacity import largest_batch, longest_context


@pytest.fixture(scope="module")
def model(tiny_llama):
    with pykvq.Model.open(tiny_llama) as opened:
        yield opened


@pytest.mark.parametrize("kv", [kv.name for kv in pykvq.kv_types()])
@pytest.mark.parametrize("options", [{"ctx": 512}, {"ctx": 5000, "seqs": 3, "batch": 64}, {"ctx": 512, "exact": True}])
def test_an_engine_takes_what_was_planned(model, kv, options):
    plan = pykvq.plan(model, kv=kv, **options)
    before = lib.pykvq_allocated_bytes()
    with pykvq.Engine(model, kv=kv, **options) as engine:
        sequences = [engine.sequence() for _ in range(plan.n_seq)]  # hold page tables
        taken = lib.pykvq_allocated_bytes() - before
        assert all(len(sequence) == 0 for sequence in sequences)
    assert taken == pytest.approx(plan.n_kv_bytes + plan.n_scratch_bytes, rel=0.01)


@pytest.mark.parametrize("kv", ["f16", "kivi2"])
def test_what_fits_is_the_most_that_fits(model, kv):
    memory = 20 << 20
    ctx = longest_context(model, memory, {"kv": kv})
    assert (
        pykvq.plan(model, kv=kv, ctx=ctx).n_total_bytes <= memory < pykvq.plan(model, kv=kv, ctx=ctx + 64).n_total_bytes
    )
    n = largest_batch(model, memory, {"kv": kv, "ctx": 512})
    total = [pykvq.plan(model, kv=kv, ctx=512, seqs=i).n_total_bytes for i in (n, n + 1)]
    assert total[0] <= memory < total[1]


def test_nothing_fits(model):
    assert longest_context(model, 1000, {}) == largest_batch(model, 1000, {}) == 0


def test_bench_counts_tokens_and_bytes(model):
    test = BenchTest(depths=[0, 128], n_prompt=32, n_gen=8, n_seqs=2, repeats=3, seed=1)
    rows = list(bench(model, test, batch=64, options={"kv": "q8_0"}, bandwidth=1e9))
    assert [(row["n_depth"], row["n_prompt"], row["n_gen"], row["n_seqs"]) for row in rows] == [
        (0, 32, 0, 1), (0, 0, 8, 2), (128, 32, 0, 1), (128, 0, 8, 2),
    ]  # fmt: skip
    weights = sum(t.n_bytes for t in model.gguf.tensors if t.name != "token_embd.weight")
    for row in rows:
        assert len(row["samples_ts"]) == 3
        assert row["min_ts"] <= row["median_ts"] <= row["max_ts"]
        assert row["bandwidth_fraction"] == pytest.approx(row["median_ts"] * row["bytes_per_token"] / 1e9)
    assert rows[0]["bytes_per_token"] == weights / 32
    assert rows[3]["bytes_per_token"] == (weights + rows[3]["n_kv_bytes"]) / 2
    assert rows[3]["n_kv_bytes"] == 2 * rows[2]["n_kv_bytes"] > 0


def test_bandwidth_is_plausible():
    assert 1e8 < measure_bandwidth(1) < 1e13
