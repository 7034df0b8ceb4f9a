"""Compressed caches in an engine: every type runs, key biases cost nothing, rewinding and forking meet encoded tiles."""

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


@pytest.mark.parametrize(("kv", "bound"), [("q8_0", 0.01), ("q4_0", 0.12), ("turbo4", 0.12), ("kvarn4", 0.12)])
def test_a_key_bias_costs_no_precision(biased, kv, bound):
    """With a bias of 60 in the keys, scales would be some 60 times as coarse; it is taken out first."""
    exact = last_logits(biased, TEXT[:600])
    assert distance(last_logits(biased, TEXT[:600], kv=kv, kv_sink=0, kv_tail=0), exact) < bound
    assert distance(last_logits(biased, TEXT[:600], kv=kv, kv_sink=0, kv_tail=0, batch=1), exact) < bound
