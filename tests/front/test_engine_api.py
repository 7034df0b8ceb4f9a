"""pykvq.Model, Engine, Sequence and Sampler: what they return, how long they live, who may use them."""

import gc
import threading
import weakref

import numpy as np
import pytest

import pykvq

PROMPT = [10, 20, 30, 40, 50]


@pytest.fixture
def model(tiny_llama):
    with pykvq.Model.open(tiny_llama) as model:
        yield model


@pytest.fixture
def engine(model):
    with pykvq.Engine(model, seqs=4, ctx=256, threads=1) as engine:
        yield engine


def feed(sequence: pykvq.Sequence, tokens: list[int]) -> np.ndarray:
    """The logits after these tokens: (n_vocab)."""
    sequence.sync(tokens)
    with sequence.engine.use():
        while sequence.n_pending:
            sequence.engine.step([sequence])
        return sequence.logits()[-1]


# ---- what they return


def test_info(model):
    info = model.info
    assert (info.arch, info.name) == ("llama", "tiny")
    assert (info.n_layer, info.n_embd, info.n_head, info.n_head_kv, info.head_dim) == (2, 128, 2, 1, 64)
    assert (info.n_vocab, info.n_ctx_train, info.n_ff) == (260, 512, 160)
    assert info.n_params == sum(int(np.prod(tensor.shape)) for tensor in model.gguf.tensors)
    assert info.fingerprint


def test_plan(model, engine):
    assert engine.plan == pykvq.plan(model, seqs=4, ctx=256, threads=1)
    assert (engine.plan.n_ctx, engine.plan.n_seq, engine.plan.n_threads) == (256, 4, 1)
    assert engine.plan.kv_bytes_per_token == 2 * 2 * 64 * 2  # 2 layers, K and V, 64 halves
    assert engine.plan.n_kv_bytes >= 4 * 256 * engine.plan.kv_bytes_per_token


def test_default_context_is_what_the_model_was_trained_for_up_to_a_limit(model):
    assert pykvq.plan(model).n_ctx == 512


def test_sequence(engine):
    with engine.sequence() as sequence:
        assert sequence.sync(PROMPT) == 0
        assert (len(sequence), sequence.n_pending, sequence.tokens) == (5, 5, PROMPT)
        engine.step([sequence])
        assert sequence.n_pending == 0
        assert sequence.n_kv_bytes > 0
        assert sequence.logits().shape == (1, 260)
        assert sequence.logits().dtype == np.float32
        assert sequence.sync([*PROMPT, 60]) == 5
        assert sequence.sync(np.array(PROMPT)[:3]) == 2  # the last one is fed again


def test_logits_of_all_tokens(model):
    with pykvq.Engine(model, logits=8) as engine, engine.sequence() as sequence:
        sequence.keep_logits(all_tokens=True)
        feed(sequence, PROMPT)
        rows = sequence.logits()
        assert rows.shape == (5, 260)
        np.testing.assert_allclose(rows[2], feed(sequence, PROMPT[:3]), rtol=1e-3, atol=1e-4)


def test_fork_and_rewind(engine):
    with engine.sequence() as one:
        feed(one, PROMPT)
        with one.fork() as two:
            assert two.tokens == PROMPT
            two.push([60])
            one.push([70])
            engine.step([one, two])
            after_70 = one.logits()
            assert not np.array_equal(after_70, two.logits())
            two.rewind(5)
            two.push([70])
            engine.step([two])
            np.testing.assert_array_equal(after_70, two.logits())


def test_save_and_load(engine, tmp_path):
    with engine.sequence() as one, engine.sequence() as two:
        feed(one, PROMPT)
        one.save(tmp_path / "saved")
        two.load(tmp_path / "saved")
        assert two.tokens == PROMPT
        np.testing.assert_array_equal(feed(two, [*PROMPT, 60]), feed(one, [*PROMPT, 60]))
        with pytest.raises(pykvq.FileError, match="missing"):
            two.load(tmp_path / "missing")
        assert two.tokens == [*PROMPT, 60]


def test_stats(engine):
    with engine.sequence() as sequence:
        feed(sequence, PROMPT)
        sequence.push([1])
        engine.step([sequence])
        stats = engine.stats
        assert (stats.n_prompt_tokens, stats.n_decode_tokens, stats.n_seq_open) == (5, 1, 1)
        assert stats.prompt_seconds > 0
        assert stats.n_kv_bytes_used > 0
    assert engine.stats.n_seq_open == 0


def test_greedy_takes_the_likeliest(engine):
    with engine.sequence() as sequence:
        row = feed(sequence, PROMPT)
        assert sequence.sample(pykvq.Sampler(temp=0)) == row.argmax()
        assert pykvq.Sampler(temp=0).sample(row) == row.argmax()
        assert pykvq.Sampler(temp=5, top_k=1).sample(row) == row.argmax()


def test_seed_repeats():
    row = np.random.default_rng(0).standard_normal(100).astype(np.float32)

    def draw(seed):
        sampler = pykvq.Sampler(temp=1, top_k=0, top_p=1, min_p=0, seed=seed)
        return [sampler.sample(row) for _ in range(50)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert len(set(draw(1))) > 10
    assert pykvq.Sampler().seed != pykvq.Sampler().seed


# ---- wrong arguments


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ctx": -1}, "ctx=-1 is out of range"),
        ({"ctx": 2**40}, "is out of range"),
        ({"device": "abacus"}, "abacus"),
        ({"kv": "f17"}, "f17"),
        ({"kv_layers": "0-:f16"}, "layer number"),
    ],
)
def test_bad_options(model, options, match):
    with pytest.raises(pykvq.PykvqError, match=match):
        pykvq.Engine(model, **options)


def test_unknown_option(model):
    with pytest.raises(TypeError, match="unknown option 'context'"):
        pykvq.Engine(model, context=7)


@pytest.mark.parametrize("tokens", [[], [260], [-1], [2**40]])
def test_bad_tokens(engine, tokens):
    with engine.sequence() as sequence:
        sequence.sync(PROMPT)
        with pytest.raises(pykvq.ArgumentError):
            sequence.sync(tokens)
        assert sequence.tokens == PROMPT


def test_too_many_tokens(engine):
    with engine.sequence() as sequence, pytest.raises(pykvq.FullError):
        sequence.sync([1] * 257)


def test_too_many_sequences(engine):
    kept = [engine.sequence() for _ in range(4)]
    with pytest.raises(pykvq.FullError):
        engine.sequence()
    assert len(kept) == 4


@pytest.mark.parametrize("n_tokens", [-1, 6])
def test_bad_rewind(engine, n_tokens):
    with engine.sequence() as sequence:
        sequence.sync(PROMPT)
        with pytest.raises(pykvq.ArgumentError, match="the sequence has 5"):
            sequence.rewind(n_tokens)


def test_sequence_of_another_engine(model, engine):
    with pykvq.Engine(model) as other, other.sequence() as sequence:
        sequence.sync(PROMPT)
        with pytest.raises(pykvq.ArgumentError, match="another engine"):
            engine.step([sequence])


@pytest.mark.parametrize("options", [{"temp": -1.0}, {"temp": float("nan")}, {"top_p": 2.0}, {"top_k": -1}])
def test_bad_sampler(options):
    with pytest.raises(pykvq.ArgumentError):
        pykvq.Sampler(**options)


def test_logits_that_are_not_finite():
    with pytest.raises(pykvq.NumericError):
        pykvq.Sampler().sample(np.full(10, np.nan, np.float32))


# ---- lifetimes


def test_closing_a_model_closes_what_is_on_it(tiny_llama):
    model = pykvq.Model.open(tiny_llama)
    engine = pykvq.Engine(model)
    sequence = engine.sequence()
    model.close()
    model.close()
    for use in (
        lambda: sequence.sync(PROMPT),
        lambda: sequence.n_pending,
        engine.sequence,
        lambda: pykvq.Engine(model),
    ):
        with pytest.raises(pykvq.ArgumentError, match="closed"):
            use()
    engine.close()
    sequence.close()
    engine.cancel()


def test_each_keeps_what_it_needs(tiny_llama):
    sequence = pykvq.Engine(pykvq.Model.open(tiny_llama)).sequence()
    gc.collect()
    assert feed(sequence, PROMPT).shape == (260,)


def test_everything_is_given_back(tiny_llama):
    from pykvq._ffi import lib

    before = lib.pykvq_allocated_bytes()
    model = pykvq.Model.open(tiny_llama)
    engine = pykvq.Engine(model)
    feed(engine.sequence(), PROMPT)
    engine.sequence().close()
    watch = weakref.ref(model)
    del model, engine
    gc.collect()
    assert watch() is None
    assert lib.pykvq_allocated_bytes() == before


def test_failed_constructors_leave_no_noise(model, capsys):
    for call in (lambda: pykvq.Engine(model, kv="nothing"), lambda: pykvq.Engine(), lambda: pykvq.Sampler(temp=-1)):
        with pytest.raises((pykvq.PykvqError, TypeError)):
            call()
    gc.collect()
    assert capsys.readouterr().err == ""


# ---- threads


class Stepping:
    """A thread that feeds long prompts to a sequence over and over."""

    def __init__(self, engine: pykvq.Engine) -> None:
        self.engine = engine
        self.error: Exception | None = None
        self.is_over = False
        self.started = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.started.wait()

    def _run(self) -> None:
        try:
            sequence = self.engine.sequence()
            self.started.set()
            for i in range(100_000):
                if self.is_over:
                    return
                feed(sequence, [i % 250, *range(250)])
        except Exception as error:
            self.error = error
        self.started.set()

    def join(self) -> Exception | None:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.error

    def cancel(self) -> Exception | None:
        """Until it meets a step."""
        while self.thread.is_alive():
            self.engine.cancel()
        return self.join()


def test_threads_take_turns(engine):
    stepping = Stepping(engine)
    expected = None
    for _ in range(20):
        with engine.sequence() as sequence:
            logits = feed(sequence, PROMPT)
        assert expected is None or np.array_equal(logits, expected)
        expected = logits
    stepping.is_over = True
    assert stepping.join() is None


def test_cancel_ends_a_step(engine):
    stepping = Stepping(engine)
    assert isinstance(stepping.cancel(), pykvq.CancelledError)
    with engine.sequence() as sequence:
        assert feed(sequence, PROMPT).shape == (260,)


def test_cancel_without_a_step_does_nothing(engine):
    with engine.sequence() as sequence, engine.sequence() as other:
        engine.cancel()
        engine.cancel(sequence)
        assert feed(sequence, PROMPT).shape == (260,)
        stepping = Stepping(engine)
        for _ in range(50):
            engine.cancel(other)  # which is not in that step
        stepping.is_over = True
        assert stepping.join() is None


def test_close_waits_for_the_step(engine):
    stepping = Stepping(engine)
    engine.close()
    assert isinstance(stepping.join(), (pykvq.CancelledError, pykvq.ArgumentError))


def test_sequence_collected_while_another_thread_steps(engine):
    others = [engine.sequence() for _ in range(3)]
    stepping = Stepping(engine)
    others.clear()
    stepping.cancel()
    del stepping
    gc.collect()
    assert len([engine.sequence() for _ in range(4)]) == 4  # all slots are free again
