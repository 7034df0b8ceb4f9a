"""The sampler against a numpy reference: which tokens it may draw, and how often it draws them."""

import numpy as np
import pytest

import pykvq
from pykvq.errors import ArgumentError, NumericError

OFF = {"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1}


def make(**changes) -> pykvq.Sampler:
    return pykvq.Sampler(**{**OFF, **changes})


def softmax(x):
    p = np.exp(x - np.max(x))
    return p / p.sum()


def penalized(logits, history, repeat_penalty=1, frequency_penalty=0, presence_penalty=0, penalty_last_n=64):
    x = np.array(logits, np.float64)
    seen = history if penalty_last_n < 0 else history[len(history) - min(penalty_last_n, len(history)) :]
    for t in set(seen):
        x[t] = x[t] / repeat_penalty if x[t] > 0 else x[t] * repeat_penalty
        x[t] -= seen.count(t) * frequency_penalty + presence_penalty
    return x


def dry(logits, history, multiplier, base=1.75, allowed=2, last_n=-1, breakers=()):
    """By definition, cubic: for each candidate, the longest end of the history that it has followed before."""
    x = np.array(logits, np.float64)
    h = history if last_n < 0 else history[len(history) - min(last_n, len(history)) :]
    for t in set(h) - set(breakers):
        longest = 0
        for i in (i for i in range(len(h)) if h[i] == t):
            n = 0
            while n < i and h[i - 1 - n] == h[len(h) - 1 - n] and h[len(h) - 1 - n] not in breakers:
                n += 1
            longest = max(longest, n)
        if longest >= allowed:
            x[t] -= multiplier * base ** (longest - allowed)
    return x


def reference(
    logits,
    temp=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    typical_p=1.0,
    top_n_sigma=0.0,
    temp_range=0.0,
    temp_exponent=1.0,
    xtc_threshold=None,
):
    """Probabilities (n_vocab) after the filters (XTC happens, if it has a threshold) and the temperature."""
    x = np.asarray(logits, np.float64)
    kept = np.lexsort((np.arange(len(x)), -x))
    kept = kept[np.isfinite(x[kept])]
    if top_n_sigma > 0:
        kept = kept[x[kept] >= x[kept].max() - top_n_sigma * x[kept].std()]
    kept = kept[: top_k or None]
    if typical_p < 1:
        p = softmax(x[kept])
        distance = np.abs(-np.log(p) + (p * np.log(p)).sum())
        order = np.argsort(distance)
        order = order[: np.searchsorted(np.cumsum(p[order]), typical_p) + 1]
        kept = kept[np.sort(order)]
    if top_p < 1:
        kept = kept[: np.searchsorted(np.cumsum(softmax(x[kept])), top_p) + 1]
    if min_p > 0:
        kept = kept[x[kept] >= x[kept[0]] + np.log(min_p)]
    if xtc_threshold is not None:
        kept = kept[max(0, (softmax(x[kept]) >= xtc_threshold).sum() - 1) :]
    if temp_range > 0 and len(kept) > 1:
        p = softmax(x[kept])
        evenness = -(p * np.log(p)).sum() / np.log(len(p))
        low, high = max(0, temp - temp_range), temp + temp_range
        temp = low + (high - low) * evenness**temp_exponent
    out = np.zeros(len(x))
    out[kept] = softmax(x[kept] / temp)
    return out


def assert_draws(sampler, logits, expected, history=(), n=20000):
    counts = np.bincount([sampler.sample(logits, history) for _ in range(n)], minlength=len(logits))
    assert not counts[expected == 0].any()
    deviation = np.sqrt(n * expected * (1 - expected)) + 1
    assert (np.abs(counts - n * expected) < 5 * deviation).all()


LOGITS = np.random.default_rng(5).standard_normal(40).astype(np.float32) * 2
FILTERS = [
    {},
    {"temp": 0.5},
    {"temp": 2.0, "top_k": 5},
    {"top_k": 1},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"temp": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    {"typical_p": 0.5},
    {"typical_p": 0.9, "top_p": 0.8},
    {"top_n_sigma": 1.0},
    {"top_n_sigma": 1.5, "top_k": 4, "temp": 3.0},
    {"temp": 1.0, "temp_range": 0.8},
    {"temp": 0.5, "temp_range": 1.0, "temp_exponent": 2.0, "top_k": 10},
]


@pytest.mark.parametrize("setting", FILTERS, ids=str)
def test_draws_follow_the_reference(setting):
    assert_draws(make(**setting), LOGITS, reference(LOGITS, **setting))


def test_the_whole_chain_in_its_order():
    """Everything at once: in another order other tokens would be left."""
    history = [int(t) for t in np.random.default_rng(8).integers(0, 40, 60)] + [3, 17, 9, 3, 17]
    penalties = {"repeat_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2, "penalty_last_n": 30}
    filters = {"top_n_sigma": 2.5, "top_k": 20, "typical_p": 0.95, "top_p": 0.95, "min_p": 0.03, "xtc_threshold": 0.08}
    heat = {"temp": 1.2, "temp_range": 0.4, "temp_exponent": 1.5}
    bias = {4: 1.5, 7: -np.inf}
    biased = LOGITS.astype(np.float64)
    for token, shift in bias.items():
        biased[token] += shift
    x = dry(penalized(biased, history, **penalties), history, 1.1, allowed=1)
    sampler = make(
        **penalties, **filters, **heat, logit_bias=bias, xtc_probability=1.0, dry_multiplier=1.1, dry_allowed_length=1
    )
    expected = reference(x, **filters, **heat)
    assert 3 <= (expected > 0).sum() < 20
    assert_draws(sampler, LOGITS, expected, history)


PENALTIES = [
    {"repeat_penalty": 1.7},
    {"repeat_penalty": 0.6},
    {"frequency_penalty": 0.9},
    {"presence_penalty": 1.4},
    {"frequency_penalty": -0.4, "presence_penalty": 0.3, "repeat_penalty": 1.2, "penalty_last_n": 3},
    {"presence_penalty": 2.0, "penalty_last_n": 0},
    {"presence_penalty": 2.0, "penalty_last_n": -1},
]


@pytest.mark.parametrize("setting", PENALTIES, ids=str)
def test_penalties_follow_the_reference(setting):
    history = [int(t) for t in np.random.default_rng(8).integers(0, 40, 100)] + [3, 17, 3]
    expected = reference(penalized(LOGITS, history, **setting))
    assert_draws(make(**setting), LOGITS, expected, history, n=5000)


def dry_shift(history, **options):
    """What DRY subtracts from each of 12 tokens: found by the bias under which a token comes to lead."""
    expected = -dry(np.zeros(12), history, **options)
    names = {"base": "dry_base", "allowed": "dry_allowed_length", "last_n": "dry_last_n", "breakers": "dry_breakers"}
    settings = {names.get(name, "dry_multiplier"): value for name, value in options.items()}
    for t in range(12):
        for slack, leads in ((-0.01, False), (0.01, True)):
            bias = {t: min(expected[t], 1e6) + slack, (t + 1) % 12: 0.0}
            bias |= {other: -np.inf for other in range(12) if other not in bias}
            neighbour = (t + 1) % 12
            bias[neighbour] = min(expected[neighbour], 1e6)
            drawn = make(temp=0.0, logit_bias=bias, **settings).sample(np.zeros(12), history)
            assert (drawn == t) == leads, (t, history, options)
    return expected


def test_dry_follows_its_definition():
    rng = np.random.default_rng(9)
    n_penalized = 0
    for _ in range(60):
        options = {"multiplier": float(rng.uniform(0.3, 2)), "base": float(rng.uniform(1, 2))}
        options |= {"allowed": int(rng.integers(1, 4)), "last_n": int(rng.choice([-1, 0, 7, 20]))}
        options |= {"breakers": [int(t) for t in rng.choice(12, 2, replace=False)] if rng.random() < 0.5 else []}
        part = [int(t) for t in rng.integers(0, 12 if rng.random() < 0.5 else 3, int(rng.integers(0, 12)))]
        history = part + [int(t) for t in rng.integers(0, 12, int(rng.integers(0, 4)))] + part
        n_penalized += bool(dry_shift(history, **options).any())
    assert n_penalized > 20


def test_dry_of_a_very_long_repetition_stays_finite():
    logits = np.zeros(3)
    logits[1] = 5.0
    history = [1] * 3000
    assert make(temp=0.0, dry_multiplier=1.0).sample(logits, history) != 1
    only = {0: -np.inf, 2: -np.inf}
    assert make(temp=0.0, dry_multiplier=1.0, logit_bias=only).sample(logits, history) == 1


def test_xtc_drops_the_top_choices_as_often_as_told():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    without = np.array([0, 0, 0.2, 0.1]) / 0.3
    logits = np.log(p)
    assert_draws(make(xtc_probability=1.0, xtc_threshold=0.15), logits, without)
    assert_draws(make(xtc_probability=0.25, xtc_threshold=0.15), logits, 0.25 * without + 0.75 * p)
    assert_draws(make(xtc_probability=1.0, xtc_threshold=0.35), logits, p)  # one alone is no choice


def test_bias_is_added():
    bias = {3: 2.0, 5: -np.inf, 1000: 1.0}
    shifted = LOGITS.astype(np.float64)
    shifted[3] += 2
    shifted[5] = -np.inf
    assert_draws(make(logit_bias=bias), LOGITS, reference(shifted))


def test_mask_allows_only_what_it_says():
    sampler = make()
    mask = np.zeros(2, np.uint32)
    mask[0], mask[1] = 1 << 4 | 1 << 31, 1 << 2
    sampler.allow(mask)
    allowed = np.full(40, -np.inf)
    allowed[[4, 31, 34]] = LOGITS[[4, 31, 34]]
    assert_draws(sampler, LOGITS, reference(allowed), n=5000)
    sampler.allow(mask[:1])
    assert {sampler.sample(LOGITS) for _ in range(500)} == {4, 31}
    sampler.allow(None)
    assert len({sampler.sample(LOGITS) for _ in range(2000)}) > 10
    sampler.allow(np.zeros(2, np.uint32))
    with pytest.raises(NumericError, match="every token is excluded"):
        sampler.sample(LOGITS)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_holds_its_surprise(version):
    rng = np.random.default_rng(10)
    logits = -1.1 * np.log(np.arange(1, 3001)) + 0.01 * rng.standard_normal(3000)  # Zipf's law
    p = softmax(logits)
    surprise = {}
    for tau in (2.0, 5.0):
        sampler = make(mirostat=version, mirostat_tau=tau)
        drawn = [sampler.sample(logits) for _ in range(3000)][500:]
        surprise[tau] = float(np.mean(-np.log2(p[drawn])))
        if version == 2:
            assert len(set(drawn)) > 2
    assert surprise[2.0] < surprise[5.0] < -np.log2(p) @ p


def zipf_k(p, mu):
    """Mirostat 1: how many tokens to keep, from the slope of the 100 likeliest."""
    p = np.sort(p)[::-1][:100]
    t, b = np.log(np.arange(2, len(p) + 1) / np.arange(1, len(p))), np.log(p[:-1] / p[1:])
    s = (t * b).sum() / (t * t).sum()
    return int(((s - 1) * 2**mu / (1 - len(LOGITS) ** (1 - s))) ** (1 / s))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("temp", [0.7, 1.0])
def test_the_first_draw_of_mirostat_follows_its_definition(version, temp):
    """mu is 2 tau then."""
    p = softmax(LOGITS.astype(np.float64) / temp)
    tau = 1.5
    kept = np.argsort(-p)[: zipf_k(p, 2 * tau)] if version == 1 else np.flatnonzero(-np.log2(p) <= 2 * tau)
    assert 1 < len(kept) < 30
    expected = np.zeros(len(p))
    expected[kept] = p[kept] / p[kept].sum()
    settings = {"mirostat": version, "mirostat_tau": tau, "temp": temp}
    n = 4000
    counts = np.bincount([make(**settings, seed=s).sample(LOGITS) for s in range(n)], minlength=len(p))
    assert not counts[expected == 0].any()
    assert (np.abs(counts - n * expected) < 5 * np.sqrt(n * expected * (1 - expected)) + 5).all()


def test_mirostat_2_follows_a_reference():
    """Run beside a numpy mirostat: nothing above mu is ever drawn, and mu follows what was drawn."""
    logits = np.random.default_rng(11).standard_normal(500) * 1.5
    p, mu = softmax(logits.astype(np.float32).astype(np.float64)), 8.0
    sampler = make(mirostat=2, mirostat_tau=4.0, mirostat_eta=0.3)
    surprises = []
    for _ in range(500):
        kept = np.flatnonzero(-np.log2(p) <= mu + 1e-4)
        kept = kept if len(kept) else np.array([p.argmax()])
        token = sampler.sample(logits)
        assert token in kept
        surprises.append(-np.log2(p[token] / p[kept].sum()))
        mu -= 0.3 * (surprises[-1] - 4.0)
    assert np.mean(surprises) == pytest.approx(4.0, abs=0.1)


def test_top_k_of_a_large_vocabulary_is_exact():
    rng = np.random.default_rng(6)
    for trial in range(30):
        logits = rng.standard_normal(50000).astype(np.float32)
        if trial % 3 == 0:
            logits = np.round(logits, 1)  # many equal ones: the lower id wins
        k = int(rng.integers(1, 100))
        allowed = set(np.lexsort((np.arange(len(logits)), -logits))[:k])
        sampler = make(top_k=k, temp=50.0, seed=trial)
        assert {sampler.sample(logits) for _ in range(50)} <= allowed


def test_greedy_is_the_first_highest():
    assert make(temp=0.0).sample([0, 3, 1, 3]) == 1


def test_a_temperature_near_zero_is_greedy():
    assert {make(temp=1e-30, seed=s).sample(LOGITS) for s in range(50)} == {int(LOGITS.argmax())}


EVERYTHING = {"temp_range": 0.5, "typical_p": 0.95, "top_n_sigma": 3.0, "xtc_probability": 0.5, "xtc_threshold": 0.05}


@pytest.mark.parametrize("setting", [{}, EVERYTHING, {"mirostat": 1}, {"mirostat": 2}], ids=str)
def test_same_seed_same_draws(setting):
    logits = np.random.default_rng(7).standard_normal(100)
    a, b, c = (make(seed=s, **setting) for s in (9, 9, 10))
    draws = [[s.sample(logits) for _ in range(50)] for s in (a, b, c)]
    assert draws[0] == draws[1] != draws[2]


def test_excluded_tokens_are_never_drawn():
    logits = np.full(10, -np.inf)
    logits[[2, 7]] = 0.0
    for setting in ({}, EVERYTHING, {"mirostat": 1}, {"mirostat": 2}):
        sampler = make(**setting)
        assert {sampler.sample(logits) for _ in range(100)} <= {2, 7}
    with pytest.raises(NumericError, match="every token is excluded"):
        make().sample(np.full(10, -np.inf))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_broken_logits_are_reported(bad, temp):
    with pytest.raises(NumericError, match=r"token 3"):
        make(temp=temp).sample([0, 1, 2, bad])


def test_history_outside_the_vocabulary_is_passed_over():
    sampler = make(repeat_penalty=2.0, dry_multiplier=1.0)
    history = [-1, 50, 2**31 - 1] * 4
    assert 0 <= sampler.sample(LOGITS, history) < 40


@pytest.mark.parametrize(
    "bad",
    [
        {"temp": -1.0},
        {"temp": np.nan},
        {"top_k": -2},
        {"top_k": 2**40},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": np.nan},
        {"temp_range": -1.0},
        {"temp_exponent": np.inf},
        {"typical_p": 0.0},
        {"top_n_sigma": -1.0},
        {"xtc_probability": 1.1},
        {"xtc_threshold": -0.1},
        {"repeat_penalty": 0.0},
        {"frequency_penalty": np.nan},
        {"presence_penalty": np.inf},
        {"penalty_last_n": -2},
        {"dry_multiplier": -1.0},
        {"dry_base": 0.5},
        {"dry_allowed_length": 0},
        {"dry_last_n": -3},
        {"mirostat": 3},
        {"mirostat": -1},
        {"mirostat_tau": -1.0},
        {"mirostat_eta": np.nan},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        make(**bad)


@pytest.mark.parametrize("bias", [{-1: 0.0}, {0: np.nan}, {0: np.inf}, {2**31: 0.0}], ids=str)
def test_impossible_bias_is_refused(bias):
    with pytest.raises(ArgumentError, match=r"bias|token id"):
        make(logit_bias=bias)
