"""The sampler against a numpy reference: which tokens it may draw, and how often it draws them."""

import numpy as np
import pytest

from pykvq._ffi import check, ffi, lib
from pykvq.errors import ArgumentError, NumericError

DEFAULTS = {"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1}


class Sampler:
    def __init__(self, **changes):
        params = ffi.new("pykvq_sampler_params *", {"size": ffi.sizeof("pykvq_sampler_params"), **DEFAULTS, **changes})
        out = ffi.new("pykvq_sampler **")
        check(lib.pykvq_sampler_create(params, out))
        self.handle = ffi.gc(out[0], lib.pykvq_sampler_destroy)

    def draw(self, logits):
        token = ffi.new("int32_t *")
        logits = np.ascontiguousarray(logits, np.float32)
        check(lib.pykvq_sampler_sample(self.handle, ffi.from_buffer("float[]", logits), len(logits), token))
        return token[0]


def reference(logits, temp=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0):
    """Probabilities (n_vocab) after top-k, top-p, min-p, then temperature."""
    logits = np.asarray(logits, np.float64)
    order = np.lexsort((np.arange(len(logits)), -logits))
    kept = order[: top_k or None]
    p = np.exp(logits[kept] - logits[kept[0]])
    p /= p.sum()
    if top_p < 1:
        kept = kept[: np.searchsorted(np.cumsum(p), top_p) + 1]
    kept = kept[logits[kept] >= logits[kept[0]] + np.log(min_p)] if min_p > 0 else kept
    out = np.zeros(len(logits))
    out[kept] = np.exp((logits[kept] - logits[kept[0]]) / temp)
    return out / out.sum()


SETTINGS = [
    {},
    {"temp": 0.5},
    {"temp": 2.0, "top_k": 5},
    {"top_k": 1},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"temp": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_draws_follow_the_reference(setting):
    rng = np.random.default_rng(5)
    logits = rng.standard_normal(40).astype(np.float32) * 2
    expected = reference(logits, **setting)
    sampler, n = Sampler(**setting), 20000
    counts = np.bincount([sampler.draw(logits) for _ in range(n)], minlength=40)
    assert not counts[expected == 0].any()
    deviation = np.sqrt(n * expected * (1 - expected)) + 1
    assert (np.abs(counts - n * expected) < 5 * deviation).all()


def test_top_k_of_a_large_vocabulary_is_exact():
    rng = np.random.default_rng(6)
    for trial in range(30):
        logits = rng.standard_normal(50000).astype(np.float32)
        if trial % 3 == 0:
            logits = np.round(logits, 1)  # many equal ones: the lower id wins
        k = int(rng.integers(1, 100))
        allowed = set(np.lexsort((np.arange(len(logits)), -logits))[:k])
        sampler = Sampler(top_k=k, temp=50.0, seed=trial)
        assert {sampler.draw(logits) for _ in range(50)} <= allowed


def test_greedy_is_the_first_highest():
    assert Sampler(temp=0.0).draw([0, 3, 1, 3]) == 1


def test_same_seed_same_draws():
    logits = np.random.default_rng(7).standard_normal(100)
    a, b, c = (Sampler(seed=s) for s in (9, 9, 10))
    draws = [[s.draw(logits) for _ in range(50)] for s in (a, b, c)]
    assert draws[0] == draws[1] != draws[2]


def test_excluded_tokens_are_never_drawn():
    logits = np.full(10, -np.inf)
    logits[[2, 7]] = 0.0
    sampler = Sampler()
    assert {sampler.draw(logits) for _ in range(100)} == {2, 7}
    with pytest.raises(NumericError, match="every token is excluded"):
        sampler.draw(np.full(10, -np.inf))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_broken_logits_are_reported(bad, temp):
    with pytest.raises(NumericError, match=r"token 3"):
        Sampler(temp=temp).draw([0, 1, 2, bad])


@pytest.mark.parametrize(
    "bad",
    [
        {"temp": -1.0},
        {"temp": np.nan},
        {"top_k": -2},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": np.nan},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        Sampler(**bad)
