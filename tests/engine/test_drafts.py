"""Drafts: several tokens in one step give what one at a time gives, bit for bit, and can be taken back."""

import gguf
import numpy as np
import pytest

import pykvq

from . import tiny

RNG = np.random.default_rng(21)
TEXT = [int(t) for t in RNG.integers(0, tiny.N_VOCAB, 560)]
KINDS = {
    "rounded": {"weight_type": gguf.GGMLQuantizationType.Q8_0},  # activations become int8, where small changes show
    "windowed": {"window": 100},
    "window of whole tiles": {"window": 128},
    "biased": {"key_bias": 20},
}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "model.gguf"
    tiny.write(path, **KINDS[request.param])
    with pykvq.Model.open(path) as model:
        yield model


def feed(sequence, tokens) -> np.ndarray:
    """Logits of all of them, (len(tokens), n_vocab)."""
    sequence.push(tokens)
    while sequence.n_pending:
        sequence.engine.step([sequence])
    return sequence.logits()


@pytest.mark.parametrize("kv", [kv.name for kv in pykvq.kv_types()])
def test_a_draft_gives_the_bits_of_single_tokens(model, kv):
    """Also after some of its tokens were taken back, wherever it begins."""
    rng = np.random.default_rng(len(kv))
    options = {"kv_sink": 64, "kv_tail": int(rng.choice([64, 100, 128]))} if kv != "f16" else {}
    with pykvq.Engine(model, ctx=1024, seqs=2, logits=32, threads=2, kv=kv, **options) as engine:
        alone, drafted = engine.sequence(), engine.sequence()
        for sequence in (alone, drafted):
            feed(sequence, TEXT[:200])
            sequence.keep_logits(all_tokens=True)
        n_many = 0
        while len(drafted) + 20 < len(TEXT):
            n = int(rng.integers(1, drafted.n_draft + 1))
            n_right = int(rng.integers(1, n + 1))
            begin = len(drafted)
            wrong = [int(t) for t in rng.integers(0, tiny.N_VOCAB, n - n_right)]
            rows = feed(drafted, TEXT[begin : begin + n_right] + wrong)
            drafted.rewind(begin + n_right)
            assert drafted.n_pending == 0
            for i in range(n_right):
                np.testing.assert_array_equal(rows[i], feed(alone, [TEXT[begin + i]])[0], f"{i} of {n} from {begin}")
            n_many += n_right > 1
        assert n_many > 8


def test_how_long_a_draft_may_be(model):
    with pykvq.Engine(model, ctx=256, logits=12, kv="kivi2", kv_sink=64, kv_tail=64) as engine:
        sequence = engine.sequence()
        assert sequence.n_draft == 12  # as many as the engine keeps logits of
        feed(sequence, TEXT[:60])
        assert sequence.n_draft == 4  # to the end of the tile
        feed(sequence, TEXT[60:180])
        assert sequence.n_draft == 11  # with one more a tile would leave the tail
        feed(sequence, TEXT[180:191])
        assert sequence.n_draft == 1
        feed(sequence, TEXT[191:252])
        assert sequence.n_draft == 3
        feed(sequence, TEXT[252:256])
        assert sequence.n_draft == 0
