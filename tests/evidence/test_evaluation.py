"""Divergence, retrieval and sweeps on a tiny model; the figures against formulas written out."""

import json

import numpy as np
import pytest

import pykvq
from pykvq.evaluation import TASKS, Sweep, Windows, diverge, make_cases, retrieve
from pykvq.evaluation.divergence import Run
from pykvq.evaluation.metrics import Divergence, log_softmax
from pykvq.results import ResultFile

TEXT = "the thin thistle and the other things that thrive there. " * 60


@pytest.fixture(scope="module")
def model(tiny_llama):
    with pykvq.Model.open(tiny_llama) as opened:
        yield opened


def run(model, types, *, batch, ctx=256, count=2, n_scored=128, **options):
    windows = Windows(model, TEXT, ctx=ctx, count=count, n_scored=n_scored)
    return diverge(model, types, windows, batch=batch, options={"exact": True, **options})


def test_figures_are_those_of_the_formulas():
    rng = np.random.default_rng(1)
    p_logits, q_logits = (rng.normal(0, 3, (40, 50)).astype(np.float32) for _ in range(2))
    targets = [int(t) for t in rng.integers(0, 50, 40)]
    divergence = Divergence()
    divergence.add(p_logits[:7], q_logits[:7], targets[:7])
    divergence.add(p_logits[7:], q_logits[7:], targets[7:])
    figures = divergence.summary()

    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(1, keepdims=True) for x in (p_logits, q_logits))
    kl = (p * np.log(p / q)).sum(1)
    at = np.arange(40), targets
    assert figures["n_tokens"] == 40
    assert figures["mean_kl"] == pytest.approx(kl.mean(), rel=1e-12)
    assert figures["mean_kl_error"] == pytest.approx(kl.std(ddof=1) / 40**0.5, rel=1e-12)
    assert figures["median_kl"] == pytest.approx(np.median(kl), rel=1e-12)
    assert figures["kl_99.9"] == pytest.approx(np.quantile(kl, 0.999), rel=1e-12)
    assert figures["max_kl"] == pytest.approx(kl.max(), rel=1e-12)
    assert figures["same_top"] == (p.argmax(1) == q.argmax(1)).mean()
    assert figures["perplexity"] == pytest.approx(np.exp(-np.log(q[at]).mean()), rel=1e-12)
    assert figures["perplexity_ratio"] == pytest.approx(np.exp(np.log(p[at] / q[at]).mean()), rel=1e-12)
    assert figures["rms_probability_difference"] == pytest.approx(((p[at] - q[at]) ** 2).mean() ** 0.5, rel=1e-12)


def test_logits_that_are_not_finite_are_refused():
    logits = np.zeros((3, 5), np.float32)
    logits[1, 2] = np.nan
    with pytest.raises(pykvq.NumericError, match="not finite"):
        log_softmax(logits)


@pytest.mark.parametrize("batch", [1, 64, 100, 512])
def test_f16_against_itself_is_exactly_zero(model, batch):
    figures = run(model, ["f16"], batch=batch)["f16"]
    assert figures["max_kl"] == 0
    assert (figures["same_top"], figures["perplexity_ratio"], figures["n_tokens"]) == (1, 1, 256)


def test_fewer_bits_lose_more(model):
    results = run(model, ["q8_0", "turbo2"], batch=64)
    assert 0 < results["q8_0"]["mean_kl"] < 0.1 * results["turbo2"]["mean_kl"]
    assert results["turbo2"]["bits_per_element"] < results["q8_0"]["bits_per_element"]


def test_steps_of_a_tile_see_what_single_tokens_see(model):
    """A tile leaves the tail only when it ends, so the cache of a step of 64 is that of each token alone.

    Kernels for few tokens round queries to fewer bits, which moves the divergence by a little.
    """
    one, tile = (run(model, ["kivi2"], batch=batch)["kivi2"] for batch in (1, 64))
    assert tile["mean_kl"] == pytest.approx(one["mean_kl"], rel=0.02)
    whole = run(model, ["kivi2"], batch=256)["kivi2"]
    assert whole["max_kl"] == 0  # one step never reads what it encodes


def test_options_of_the_cache_are_not_for_the_reference(model):
    assert run(model, ["f16"], batch=64, kv_v="turbo2")["f16"]["mean_kl"] > 0


def test_a_type_that_fails_leaves_the_others(model):
    results = run(model, ["f16", "kivi9", "q8_0"], batch=64)
    assert isinstance(results["kivi9"], pykvq.ArgumentError)
    assert results["q8_0"]["mean_kl"] > 0


def test_a_type_whose_logits_are_not_finite_leaves_the_others(model, monkeypatch):
    feed, bits = Run.feed, pykvq.plan(model, kv="q8_0", ctx=256).kv_bits_per_element

    def spoiled(self, tokens, n_scored):
        logits = feed(self, tokens, n_scored)
        return logits * np.float32("nan") if self.engine.plan.kv_bits_per_element == bits else logits

    monkeypatch.setattr(Run, "feed", spoiled)
    results = run(model, ["q8_0", "q4_0"], batch=64)
    assert isinstance(results["q8_0"], pykvq.NumericError)
    assert results["q4_0"]["mean_kl"] > 0


def test_windows_cover_the_text_in_order(model):
    tokens = model.tokenizer.encode(TEXT, add_bos=False)
    windows = Windows(model, TEXT, ctx=100, count=3, n_scored=10)
    assert windows.tokens == [tokens[0:100], tokens[100:200], tokens[200:300]]
    assert windows.targets == [tokens[91:101], tokens[191:201], tokens[291:301]]


def test_too_little_text(model):
    with pytest.raises(pykvq.ArgumentError, match=r"text: 4 tokens, 1 windows of 256 need 257"):
        Windows(model, "abcd", ctx=256, count=1, n_scored=128)


@pytest.mark.parametrize("task", TASKS)
def test_cases_fit_and_hold_the_answer(model, task):
    cases = make_cases(model, task, TEXT * 3, lengths=[1600, 2400], depths=[0, 0.5, 1], samples=2, seed=7)
    assert len(cases) == 12
    for case in cases:
        assert case.length - 80 < len(case.prompt) + len(case.answer) <= case.length
        assert case == make_cases(
            model, task, TEXT * 3, lengths=[case.length], depths=[case.depth], samples=2, seed=7
        )[cases.index(case) % 2]  # fmt: skip


def test_a_needle_stands_at_its_depth(model):
    for depth in (0, 0.5, 1):
        (case,) = make_cases(model, "needle", TEXT * 3, lengths=[3000], depths=[depth], samples=1, seed=1)
        prompt, answer = model.tokenizer.decode(case.prompt), model.tokenizer.decode(case.answer).strip(" .")
        assert prompt.count(answer) == 1
        assert prompt.index(answer) / len(prompt) == pytest.approx(0.04 + 0.9 * depth, abs=0.06)


def test_a_context_that_is_too_small_is_refused(model):
    with pytest.raises(pykvq.ArgumentError, match="too small"):
        make_cases(model, "tool", TEXT, lengths=[64], depths=[0.5], samples=1, seed=1)


def test_an_answer_is_right_if_greedy_decoding_writes_it(model):
    (case,) = make_cases(model, "needle", TEXT, lengths=[450], depths=[0.5], samples=1, seed=1)
    options = {"exact": True}
    assert retrieve(model, [case], batch=64, options=options)["correct"] == 0  # a random model
    with pykvq.Engine(model, ctx=512, **options) as engine, engine.sequence() as sequence:
        sequence.push(case.prompt)
        written = []
        for _ in case.answer:
            while sequence.n_pending:
                engine.step([sequence])
            written.append(int(sequence.logits()[-1].argmax()))
            sequence.push(written[-1:])
    told = case.__class__(case.task, case.length, case.depth, case.prompt, written)
    result = retrieve(model, [told], batch=64, options=options)
    assert (result["correct"], result["tokens_right"], result["cells"][0]["n"]) == (1, 1, 1)


# ---- sweeps ----


def sweep(model, file, types=("f16", "q8_0")):
    return Sweep(model, types, TEXT, "text", batch=64, options={"exact": True, "threads": 1}, file=file)


def test_a_sweep_takes_finished_rows_from_its_file(model, tmp_path):
    path = tmp_path / "rows.jsonl"
    setting = {"ctx": 256, "count": 1, "n_scored": 128}
    first = list(sweep(model, ResultFile(path)).divergence(**setting))
    path.write_bytes(path.read_bytes() + b'{"task": "diver')  # a crash
    again = list(sweep(model, ResultFile(path), ("q8_0", "f16", "kivi4")).divergence(**setting))
    assert [row["kv"] for row in again] == ["q8_0", "f16", "kivi4"]
    assert [again[1], again[0]] == json.loads(json.dumps(first))
    assert len(path.read_text().splitlines()) == 3
    other = list(sweep(model, ResultFile(path), ("q8_0",)).divergence(**{**setting, "n_scored": 64}))
    assert other[0]["n_tokens"] == 64


def test_rows_say_where_they_come_from(model):
    (row,) = sweep(model, ResultFile(None), ("q8_0",)).divergence(ctx=256, count=1, n_scored=128)
    assert set(row) >= {"command", "commit", "date", "machine", "model", "versions", "setting"}
    assert len(row["model"]["sha256"]) == 64
    assert (row["setting"]["batch"], row["setting"]["exact"], len(row["setting"]["text_sha256"])) == (64, True, 64)


def test_an_unknown_type_ends_a_sweep_before_it_begins(model):
    with pytest.raises(pykvq.ArgumentError, match="did you mean 'kivi2'"):
        sweep(model, ResultFile(None), ("f16", "kivii2"))


def test_a_damaged_result_file_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nnonsense\n')
    with pytest.raises(pykvq.FormatError, match="line 2 is not a JSON object"):
        ResultFile(path)
