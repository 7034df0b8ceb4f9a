"""Sequences on an engine: whatever way a token list was reached, the logits are those of feeding it plainly."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pykvq
from pykvq import errors

from . import tiny

RNG = np.random.default_rng(11)
TEXT = [int(t) for t in RNG.integers(0, tiny.N_VOCAB, 1200)]
TOLERANCE = 2e-4  # of logits that spread over about 1: other batch shapes sum in another order


@pytest.fixture(scope="module", params=["plain", "windowed"])
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "model.gguf"
    tiny.write(path, window=100 if request.param == "windowed" else None)
    with pykvq.Model.open(path) as model:
        yield model


def feed(engine, *sequences):
    while pending := [s for s in sequences if s.n_pending]:
        engine.step(pending)


def last_logits(engine, sequence):
    feed(engine, sequence)
    return sequence.logits()[-1]


def fresh_logits(model, tokens, **options):
    with pykvq.Engine(model, ctx=2048, threads=1, **options) as engine:
        sequence = engine.sequence()
        sequence.sync(tokens)
        return last_logits(engine, sequence)


def close(a, b):
    return np.abs(a - b).max() < TOLERANCE


@pytest.fixture
def engine(model):
    with pykvq.Engine(model, ctx=2048, seqs=4, batch=256, threads=2) as engine:
        yield engine


def test_chunks_and_single_tokens_agree(model):
    whole = fresh_logits(model, TEXT[:300], batch=512)
    for batch in (1, 7, 64, 299):
        assert close(fresh_logits(model, TEXT[:300], batch=batch), whole), batch


def test_sync_reuses_the_common_prefix(model, engine):
    sequence = engine.sequence()
    assert sequence.sync(TEXT[:500]) == 0
    feed(engine, sequence)
    changed = TEXT[:450] + TEXT[600:640]
    assert sequence.sync(changed) == 450
    assert sequence.n_pending == 40
    assert close(last_logits(engine, sequence), fresh_logits(model, changed))


def test_sync_to_the_same_tokens_feeds_the_last_again(model, engine):
    sequence = engine.sequence()
    sequence.sync(TEXT[:100])
    before = last_logits(engine, sequence)
    assert sequence.sync(TEXT[:100]) == 99
    assert close(last_logits(engine, sequence), before)


def test_sync_far_back_in_a_windowed_model_starts_over(tmp_path):
    path = tiny.write(tmp_path / "windowed.gguf", window=100)
    with pykvq.Model.open(path) as model, pykvq.Engine(model, ctx=2048) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT[:1000])
        feed(engine, sequence)
        assert sequence.sync(TEXT[:300]) == 0  # the window around position 300 is gone
        assert close(last_logits(engine, sequence), fresh_logits(model, TEXT[:300]))
        sequence.sync(TEXT[:1000])
        feed(engine, sequence)
        sequence.rewind(995)  # a rejected draft: nothing is fed again
        assert sequence.n_pending == 0
        sequence.push(TEXT[995:1005])
        assert close(last_logits(engine, sequence), fresh_logits(model, TEXT[:1005]))


def test_rewind_continues_as_if_never_fed(model, engine):
    sequence = engine.sequence()
    sequence.sync(TEXT[:330])
    feed(engine, sequence)
    sequence.rewind(321)
    assert len(sequence) == 321
    sequence.push(TEXT[700:710])
    assert sequence.tokens == TEXT[:321] + TEXT[700:710]
    assert close(last_logits(engine, sequence), fresh_logits(model, TEXT[:321] + TEXT[700:710]))


def test_forks_share_a_past_and_part_ways(model, engine):
    parent = engine.sequence()
    parent.sync(TEXT[:333])
    feed(engine, parent)
    used = engine.stats.n_kv_bytes_used
    children = [parent.fork() for _ in range(3)]
    assert engine.stats.n_kv_bytes_used == used  # nothing is copied until someone writes
    endings = [TEXT[400 + 10 * i : 405 + 10 * i] for i in range(4)]
    everyone = [parent, *children]
    for sequence, ending in zip(everyone, endings, strict=True):
        sequence.push(ending)
    feed(engine, *everyone)
    for sequence, ending in zip(everyone, endings, strict=True):
        assert close(sequence.logits()[-1], fresh_logits(model, TEXT[:333] + ending))


def test_pages_return_to_the_pool(engine):
    sequences = [engine.sequence() for _ in range(4)]
    for i, sequence in enumerate(sequences):
        sequence.sync(TEXT[i : i + 400])
    feed(engine, *sequences)
    assert engine.stats.n_kv_bytes_used > 0
    child_source = sequences[0]
    sequences[1].close()
    child = child_source.fork()
    for sequence in [child, *sequences]:
        sequence.close()
    assert engine.stats.n_kv_bytes_used == 0
    assert engine.stats.n_seq_open == 0


def test_ragged_batch_equals_each_alone(model, engine):
    lengths = [1, 64, 200, 333]
    sequences = [engine.sequence() for _ in lengths]
    for i, (sequence, n) in enumerate(zip(sequences, lengths, strict=True)):
        sequence.sync(TEXT[10 * i : 10 * i + n])
    engine.step(sequences)  # some prefill, one decodes
    sequences[0].push([TEXT[1]])
    feed(engine, *sequences)
    alone = [TEXT[0:2]] + [TEXT[10 * i : 10 * i + n] for i, n in list(enumerate(lengths))[1:]]
    for sequence, tokens in zip(sequences, alone, strict=True):
        if sequence.logits().shape[0] == 0:  # fed in an earlier step; feed its last token again
            sequence.sync(tokens)
            feed(engine, sequence)
        assert close(sequence.logits()[-1], fresh_logits(model, tokens))


def test_keep_logits_of_all_tokens(model):
    with pykvq.Engine(model, ctx=512, batch=128, logits=128, threads=1) as engine:
        sequence = engine.sequence()
        sequence.keep_logits(all_tokens=True)
        sequence.sync(TEXT[:128])
        engine.step([sequence])
        rows = sequence.logits()
    assert rows.shape == (128, tiny.N_VOCAB)
    for n in (1, 64, 65, 128):
        assert close(rows[n - 1], fresh_logits(model, TEXT[:n]))


def test_windowed_cache_stays_small(tmp_path):
    path = tiny.write(tmp_path / "windowed.gguf", window=100)
    with pykvq.Model.open(path) as model, pykvq.Engine(model, ctx=2048, batch=64) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT)
        feed(engine, sequence)
        tile_bytes = 2 * 64 * tiny.HEAD_DIM * tiny.N_HEAD_KV * 2
        n_tiles = -(-len(TEXT) // 64)
        assert sequence.n_kv_bytes <= tile_bytes * (n_tiles + 5)  # one layer sees all, the other a window of 100
        assert engine.plan.n_kv_bytes < tile_bytes * (2048 // 64 + 12)


def test_context_full_is_a_sentence_and_changes_nothing(engine):
    sequence = engine.sequence()
    sequence.sync(TEXT[:10])
    with pytest.raises(errors.FullError, match=r"2049 tokens.*holds 2048"):
        sequence.push([1] * 2039)
    assert sequence.tokens == TEXT[:10]
    sequence.push([1] * 2038)
    assert len(sequence) == 2048


def test_bad_tokens_and_bad_steps(engine):
    sequence = engine.sequence()
    with pytest.raises(errors.ArgumentError, match=r"token 160 at index 1.*0 to 159"):
        sequence.sync([1, 160])
    with pytest.raises(errors.ArgumentError, match="no tokens"):
        sequence.sync([])
    with pytest.raises(errors.ArgumentError, match="pending"):
        engine.step([sequence])
    sequence.sync([1])
    with pytest.raises(errors.ArgumentError, match="twice"):
        engine.step([sequence, sequence])
    with pytest.raises(errors.FullError, match="all 4 sequences"):
        others = []
        while True:
            others.append(engine.sequence())


def cancel_until(engine, done):
    while not done.is_set():
        engine.cancel()


def cancelled(engine, sequence, more):
    """A fork of the sequence with more tokens pending, whose step was cancelled in the middle.

    A step may be over before the other thread gets its turn; then another one is tried.
    """
    for _ in range(1000):
        twin = sequence.fork()
        twin.push(more)
        try:
            engine.step([twin])
        except errors.CancelledError:
            return twin
        twin.close()
    return pytest.fail("no step was cancelled")


def test_cancel_leaves_the_sequence_as_it_was(model, engine):
    sequence = engine.sequence()
    sequence.sync(TEXT[:192])  # whole pages: a fork then copies none
    feed(engine, sequence)
    used = engine.stats.n_kv_bytes_used
    canceller = threading.Thread(target=cancel_until, args=(engine, done := threading.Event()))
    canceller.start()
    try:
        twin = cancelled(engine, sequence, TEXT[192:400])
    finally:
        done.set()
        canceller.join()
    assert twin.n_pending == 208
    assert engine.stats.n_kv_bytes_used == used
    assert close(last_logits(engine, twin), fresh_logits(model, TEXT[:400]))


def test_every_failing_allocation_is_an_error_and_leaks_nothing(model):
    from pykvq._ffi import lib

    options = {"ctx": 256, "seqs": 2, "threads": 2}
    pykvq.Engine(model, **options).close()
    before = lib.pykvq_allocated_bytes()
    for n in range(500):
        lib.pykvq_fail_allocation(n)
        try:
            with pykvq.Engine(model, **options) as engine:
                sequence = engine.sequence()
                sequence.sync(TEXT[:130])
                feed(engine, sequence)
            lib.pykvq_fail_allocation(2**64 - 1)
            assert n > 20
            break
        except errors.OutOfMemoryError as error:
            assert "memory" in str(error)
        assert lib.pykvq_allocated_bytes() == before
    assert lib.pykvq_allocated_bytes() == before


def test_plan_is_what_is_taken(model):
    from pykvq._ffi import lib

    before = lib.pykvq_allocated_bytes()
    with pykvq.Engine(model, ctx=2048, seqs=4, batch=256) as engine:
        sequences = [engine.sequence() for _ in range(4)]
        taken = lib.pykvq_allocated_bytes() - before
        planned = engine.plan.n_kv_bytes + engine.plan.n_scratch_bytes
        assert abs(taken - planned) <= 0.01 * planned
        assert len(sequences) == 4


def test_an_exact_engine_does_not_round_activations(tmp_path):
    """On Q8_0 weights: in one piece or token by token differ by float rounding only, and memory is as planned."""
    import gguf

    from pykvq._ffi import lib

    path = tiny.write(tmp_path / "q8.gguf", weight_type=gguf.GGMLQuantizationType.Q8_0)
    with pykvq.Model.open(path) as model:
        rounded = fresh_logits(model, TEXT[:100], batch=512)
        whole = fresh_logits(model, TEXT[:100], batch=512, exact=True)
        assert close(fresh_logits(model, TEXT[:100], batch=1, exact=True), whole)
        assert not close(rounded, whole)
        before = lib.pykvq_allocated_bytes()
        with pykvq.Engine(model, ctx=256, exact=True) as engine:
            planned = engine.plan.n_kv_bytes + engine.plan.n_scratch_bytes
            assert abs(lib.pykvq_allocated_bytes() - before - planned) <= 0.01 * planned


def test_exact_engines_of_a_model_share_its_float_weights(tmp_path):
    import gguf

    from pykvq._ffi import lib

    path = tiny.write(tmp_path / "q8.gguf", weight_type=gguf.GGMLQuantizationType.Q8_0)
    with pykvq.Model.open(path) as model:
        n_elements = sum(math.prod(t.shape) for t in model.gguf.tensors if t.type == "Q8_0")
        n_empty = lib.pykvq_allocated_bytes()
        expected = fresh_logits(model, TEXT[:100], exact=True)
        assert lib.pykvq_allocated_bytes() == n_empty
        with ThreadPoolExecutor(4) as pool:
            engines = list(pool.map(lambda _: pykvq.Engine(model, ctx=256, exact=True, threads=1), range(4)))
            n_four = lib.pykvq_allocated_bytes()
            engines[0].close()  # also the first may go first
            n_engine = n_four - lib.pykvq_allocated_bytes()
            assert n_four - n_empty == pytest.approx(4 * n_engine + 4 * n_elements, rel=0.01)
            for engine in engines[1:]:
                sequence = engine.sequence()
                sequence.sync(TEXT[:100])
                while sequence.n_pending:
                    engine.step([sequence])
                assert close(sequence.logits()[-1], expected)
            for engine in engines:
                engine.close()
        assert lib.pykvq_allocated_bytes() == n_empty
