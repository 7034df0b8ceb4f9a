"""Compressed caches in an engine: key biases cost nothing, rewinding, forking and saving meet encoded tiles."""

import numpy as np
import pytest

import pykvq

from . import tiny
from .test_sequences import TEXT, feed


def last_logits(model, tokens, **options):
    with pykvq.Engine(model, ctx=1024, threads=2, **options) as engine:
        sequence = engine.sequence()
        sequence.sync(tokens)
        feed(engine, sequence)
        return sequence.logits()[-1]


def distance(a, b):
    """Root mean square difference over the spread."""
    return float(np.sqrt(np.mean((a - b) ** 2)) / b.std())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with pykvq.Model.open(tiny.write(tmp_path_factory.mktemp("tiny") / "plain.gguf")) as model:
        yield model


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    with pykvq.Model.open(tiny.write(tmp_path_factory.mktemp("tiny") / "biased.gguf", key_bias=60.0)) as model:
        yield model


@pytest.mark.parametrize("batch", [1, 512])
@pytest.mark.parametrize("kv", ["q8_0", "q4_0", "kivi4", "turbo4", "kvarn4"])
def test_a_key_bias_costs_no_precision(model, biased, kv, batch):
    """With a bias of 60 in the keys scales would be many times as coarse, and logits 5 to 8 times as far off as without
    a bias; it is taken out first. Only keys are encoded: values lose more under a bias, which makes attention narrow.
    """
    off = [
        distance(
            last_logits(m, TEXT[:600], kv_k=kv, kv_v="f16", kv_sink=0, kv_tail=0, batch=batch),
            last_logits(m, TEXT[:600], batch=batch),
        )
        for m in (model, biased)
    ]
    assert off[1] < 2.5 * off[0]


@pytest.mark.parametrize("kv", ["kivi2", "tier2", "turbo3", "q8_0/kvarn2"])
def test_rewinding_into_encoded_tiles_feeds_them_again(model, kv):
    options = {"ctx": 1024, "batch": 64, "threads": 2, "kv": kv, "kv_sink": 64, "kv_tail": 0}
    changed = TEXT[:400] + TEXT[700:720]
    with pykvq.Engine(model, **options) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT[:640])
        feed(engine, sequence)
        assert sequence.sync(changed) == 384  # the tile of 384 .. 447 was encoded whole
        feed(engine, sequence)
        again = sequence.logits()[-1]
        sequence.rewind(30)  # in the sink, which is never encoded
        assert sequence.n_pending == 0
    with pykvq.Engine(model, **options) as engine:
        sequence = engine.sequence()
        sequence.sync(changed[:384])
        feed(engine, sequence)
        sequence.push(changed[384:])
        feed(engine, sequence)
        assert np.abs(again - sequence.logits()[-1]).max() < 1e-5


@pytest.mark.parametrize("n_kept", [512, 511, 320])
@pytest.mark.parametrize("kv_tail", [64, 200])
def test_going_on_from_encoded_tiles(model, n_kept, kv_tail):
    """After a rewind the newest tokens are encoded, not f16; they stay so, and each tile is encoded once."""
    options = {"ctx": 1024, "batch": 64, "threads": 2, "kv": "q8_0", "kv_sink": 64, "kv_tail": kv_tail}
    with pykvq.Engine(model, seqs=2, **options) as engine:
        sequence, fresh = engine.sequence(), engine.sequence()
        sequence.sync(TEXT[:800])
        feed(engine, sequence)
        sequence.rewind(n_kept)
        for token in TEXT[n_kept:780]:
            sequence.push([token])
            feed(engine, sequence)
        logits = sequence.logits()[-1]
        fresh.sync(TEXT[:780])
        feed(engine, fresh)
        assert sequence.kv_layers() == fresh.kv_layers()
        assert distance(logits, fresh.logits()[-1]) < 0.05


def test_forks_of_a_compressed_sequence(model):
    options = {"ctx": 1024, "threads": 2, "kv": "kivi4", "kv_sink": 64, "kv_tail": 100}
    with pykvq.Engine(model, seqs=2, **options) as engine:
        parent = engine.sequence()
        parent.sync(TEXT[:500])
        feed(engine, parent)
        child = parent.fork()
        for sequence, ending in ((parent, TEXT[500:700]), (child, TEXT[800:1000])):
            sequence.push(ending)
        feed(engine, parent, child)
        logits = [s.logits()[-1] if len(s.logits()) else None for s in (parent, child)]
        sizes = parent.n_kv_bytes, child.n_kv_bytes
    assert sizes[0] == sizes[1]
    for ending, seen in zip((TEXT[500:700], TEXT[800:1000]), logits, strict=True):
        with pykvq.Engine(model, **options) as engine:
            sequence = engine.sequence()
            sequence.sync(TEXT[:500])
            feed(engine, sequence)
            sequence.push(ending)
            feed(engine, sequence)
            if seen is not None:
                assert np.abs(sequence.logits()[-1] - seen).max() < 2e-3


def test_a_compressed_sequence_loads_bit_for_bit(model, tmp_path):
    def tail_of(sequence, engine):
        sequence.push(TEXT[600:620])
        feed(engine, sequence)
        return sequence.logits()[-1]

    options = {"ctx": 1024, "threads": 2, "kv": "kivi2/turbo3", "kv_layers": "-1:q8_0"}
    with pykvq.Engine(model, **options) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT[:600])
        feed(engine, sequence)
        sequence.save(tmp_path / "a.kv")
        expected = tail_of(sequence, engine)
    with pykvq.Engine(model, **options) as engine:
        sequence = engine.sequence()
        sequence.load(tmp_path / "a.kv")
        assert np.array_equal(tail_of(sequence, engine), expected)
    with pykvq.Engine(model, **{**options, "kv": "kivi2"}) as engine:
        sequence = engine.sequence()
        with pytest.raises(pykvq.errors.ArgumentError, match=r"layer 0 was saved as kivi2 keys and turbo3 values"):
            sequence.load(tmp_path / "a.kv")


def test_plan_counts_sink_tail_and_metadata(model):
    def plan(**options):
        return pykvq.plan(model, ctx=1024, **options)

    f16, kivi2 = plan(), plan(kv="kivi2", kv_sink=64, kv_tail=64)
    assert f16.kv_bits_per_element == 16
    encoded = 1024 // 64 - 1 - 1  # tiles, of 16: one is the sink, one the tail
    assert kivi2.kv_bits_per_element == pytest.approx((encoded * 3.0 + 2 * 16) / 16, rel=0.01)
    assert kivi2.kv_bytes_per_token == pytest.approx(f16.kv_bytes_per_token * 3.0 / 16, rel=0.01)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kv": "kivi3"}, r"'kivi3': unknown, did you mean 'kivi[24]'"),
        ({"kv": "kivi2", "kv_sink": 10}, "sink 10: must be a multiple"),
        ({"kv_layers": "0-9:q8_0"}, "layer 9, but the model has layers 0 to 1"),
        ({"kv_layers": "0"}, "expected ',' or ':TYPE'"),
        ({"kv_layers": "1-0:f16"}, "runs backwards"),
    ],
)
def test_settings_that_cannot_be(model, options, sentence):
    with pytest.raises(pykvq.errors.ArgumentError, match=sentence):
        pykvq.Engine(model, ctx=256, **options)
