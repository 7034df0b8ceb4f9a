"""Engines on a GPU give what engines on the CPU give: `pytest -m cuda` on a machine that has one.

Both compute the same numbers and round differently (a GPU's products have half-float activations), so differences are
measured by the spread of the logits. test_cuda_emulated.py runs this file without a GPU.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import write_llama
from engine import tiny
from engine.saved_file import last_byte_of_tile, with_checksum

import pykvq
from pykvq import evaluation, kv
from pykvq.device import device_problem, memory
from pykvq.quantize import quantize

pytestmark = pytest.mark.cuda
TEXT = [int(t) for t in np.random.default_rng(5).integers(0, tiny.N_VOCAB, 1200)]
TYPES = [kv_type.name for kv_type in kv.kv_types()]
MODELS = {"llama": {"head_dim": 64}, "windows": {"window": 100}, "key_bias": {"key_bias": 20, "head_dim": 128}}
TOLERANCE = 0.01  # root mean square, of the logits' standard deviation
ROUNDED_QUERIES = 0.1  # the CPU's queries meet encoded keys as int8


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    if problem := device_problem("cuda"):
        pytest.skip(problem)


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory) -> Iterator[pykvq.Model]:
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "model.gguf", **MODELS[request.param])
    with pykvq.Model.open(path) as model:
        yield model


def engine_on(device: str, model: pykvq.Model, **options) -> pykvq.Engine:
    return pykvq.Engine(model, device=device, **{"ctx": 1280, "batch": 256, "logits": 64, "exact": True, **options})


def engine_on_gpu(model: pykvq.Model, **options) -> pykvq.Engine:
    """Or skips what it says that it has no kernels for."""
    try:
        return engine_on("cuda", model, **options)
    except pykvq.UnsupportedError as error:
        if "the GPU has no kernels for it" not in str(error):
            raise
        pytest.skip(str(error))


def feed(engine: pykvq.Engine, *sequences: pykvq.Sequence) -> None:
    while pending := [s for s in sequences if s.n_pending]:
        engine.step(pending)


def next_logits(engine: pykvq.Engine, sequence: pykvq.Sequence, tokens: list[int]) -> np.ndarray:
    """Of each of these tokens, fed one at a time."""
    rows = []
    for token in tokens:
        sequence.push([token])
        feed(engine, sequence)
        rows.append(sequence.logits()[-1])
    return np.stack(rows)


def prompt_logits(engine: pykvq.Engine, tokens: list[int]) -> np.ndarray:
    sequence = engine.sequence()
    sequence.sync(tokens)
    feed(engine, sequence)
    return sequence.logits()[-1]


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(a - b).mean()) / b.std())


@pytest.mark.parametrize("kv_type", TYPES)
def test_a_cache_of_the_cpu_continues_on_the_gpu(model, kv_type, tmp_path):
    """With the same encoded bytes, only rounding within a step differs."""
    with engine_on("cpu", model, kv=kv_type) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT[:330])
        feed(engine, sequence)
        sequence.save(tmp_path / "cpu.kv")
        expected = next_logits(engine, sequence, TEXT[330:340])
    with engine_on_gpu(model, kv=kv_type) as engine:
        sequence = engine.sequence()
        sequence.load(tmp_path / "cpu.kv")
        sequence.save(tmp_path / "gpu.kv")
        assert (tmp_path / "gpu.kv").read_bytes() == (tmp_path / "cpu.kv").read_bytes()
        assert difference(next_logits(engine, sequence, TEXT[330:340]), expected) < ROUNDED_QUERIES


@pytest.mark.parametrize("kv_type", TYPES)
def test_a_cache_of_the_gpu_continues_everywhere(model, kv_type, tmp_path):
    with engine_on_gpu(model, kv=kv_type) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT[:300])
        feed(engine, sequence)
        sequence.save(tmp_path / "gpu.kv")
        expected = next_logits(engine, sequence, TEXT[300:310])
        sequence.load(tmp_path / "gpu.kv")
        np.testing.assert_array_equal(next_logits(engine, sequence, TEXT[300:310]), expected)
    with engine_on("cpu", model, kv=kv_type) as engine:
        sequence = engine.sequence()
        sequence.load(tmp_path / "gpu.kv")
        assert difference(next_logits(engine, sequence, TEXT[300:310]), expected) < ROUNDED_QUERIES


def test_a_saved_tile_with_wrong_channels_is_refused(tmp_path):
    """Before a GPU indexes with them."""
    with pykvq.Model.open(tiny.write(tmp_path / "model.gguf", head_dim=64)) as model:
        with engine_on("cpu", model, kv="tier2") as engine:
            sequence = engine.sequence()
            sequence.sync(TEXT[:330])
            feed(engine, sequence)
            sequence.save(tmp_path / "saved.kv")
        data = bytearray((tmp_path / "saved.kv").read_bytes())
        data[last_byte_of_tile(data, "tier2", "k")] = 255
        (tmp_path / "saved.kv").write_bytes(with_checksum(data))
        with engine_on("cuda", model, kv="tier2") as engine:
            sequence = engine.sequence()
            sequence.sync(TEXT[:5])
            with pytest.raises(pykvq.FormatError, match="not one that can have been encoded"):
                sequence.load(tmp_path / "saved.kv")
            assert sequence.tokens == TEXT[:5]


@pytest.mark.parametrize("options", [{"kv": "f16", "ctx": 150_000}, {"kv": "kivi2", "ctx": 700_000, "seqs": 2}])
def test_what_is_allocated_is_what_was_planned(options, tmp_path):
    """Of a GPU that nothing else uses meanwhile."""
    with pykvq.Model.open(tiny.write(tmp_path / "model.gguf", n_layer=6, head_dim=128)) as model:
        prompt_logits(engine_on("cuda", model), TEXT[:3])  # starts what stays
        n_free = memory("cuda").n_free
        with pykvq.Engine(model, device="cuda", **options) as engine:
            assert engine.plan.n_total_bytes == pytest.approx(n_free - memory("cuda").n_free, rel=0.01)
            assert engine.plan.n_total_bytes > 1 << 30


@pytest.mark.parametrize("weights", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K_M", "Q5_K_S"])
def test_weights(weights, tmp_path):
    path = tiny.write(tmp_path / "model.gguf", n_embd=256, n_ff=512, head_dim=64)
    if weights != "F32":
        path = tmp_path / "narrow.gguf"
        for _ in quantize(tmp_path / "model.gguf", path, weights):
            pass
    with pykvq.Model.open(path) as model, engine_on("cpu", model) as cpu, engine_on("cuda", model) as gpu:
        assert difference(prompt_logits(gpu, TEXT[:70]), prompt_logits(cpu, TEXT[:70])) < TOLERANCE


@pytest.mark.parametrize(
    "name",
    ["llama-mha80", "llama3-tied", "qwen2", "qwen3", "gemma2-256", "gemma3", "phi3-long", "phi4-mini", "smollm3"],
)
def test_architectures(name, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "model")
    from hf_gguf import write_gguf
    from tiny_models import tiny_model

    write_gguf(tiny_model(name), tmp_path / "model.gguf")
    with pykvq.Model.open(tmp_path / "model.gguf") as model:
        for options in ({}, {"kv": "q8_0", "kv_sink": 0, "kv_tail": 0, "batch": 64}):
            with engine_on("cpu", model, **options) as cpu, engine_on("cuda", model, **options) as gpu:
                expected = prompt_logits(cpu, TEXT[:130])
                assert difference(prompt_logits(gpu, TEXT[:130]), expected) < (
                    ROUNDED_QUERIES if options else TOLERANCE
                )


def test_chunks_and_single_tokens_agree(model):
    with engine_on("cuda", model, batch=512) as engine:
        whole = prompt_logits(engine, TEXT[:140])
    for batch in (1, 7, 64, 139):
        with engine_on("cuda", model, batch=batch) as engine:
            assert difference(prompt_logits(engine, TEXT[:140]), whole) < TOLERANCE, batch


def test_sequences_in_a_batch_do_not_meet(model):
    lengths = [1, 63, 64, 65, 150]
    texts = [TEXT[i : i + n] for i, n in enumerate(lengths)]
    with engine_on("cuda", model) as engine:
        alone = []
        for text in texts:
            with engine.sequence() as sequence:
                sequence.sync(text)
                feed(engine, sequence)
                alone.append(next_logits(engine, sequence, TEXT[:2]))
    with engine_on("cuda", model, seqs=len(texts)) as engine:
        sequences = [engine.sequence() for _ in texts]
        for sequence, text in zip(sequences, texts, strict=True):
            sequence.sync(text)
        feed(engine, *sequences)
        for i in range(2):
            for sequence in sequences:
                sequence.push([TEXT[i]])
            feed(engine, *sequences)
            for sequence, expected in zip(sequences, alone, strict=True):
                assert difference(sequence.logits()[-1], expected[i]) < TOLERANCE


def test_forks_and_rewinds(model):
    with engine_on_gpu(model, kv="kivi4", seqs=2) as engine:
        sequence = engine.sequence()
        sequence.sync(TEXT[:230])
        feed(engine, sequence)
        twin = sequence.fork()
        expected = next_logits(engine, sequence, TEXT[400:404])
        np.testing.assert_array_equal(next_logits(engine, twin, TEXT[400:404]), expected)
        next_logits(engine, twin, TEXT[500:570])  # what the twin writes is its own
        sequence.rewind(230)
        np.testing.assert_array_equal(next_logits(engine, sequence, TEXT[400:404]), expected)
        twin.rewind(100)  # into an encoded tile
        assert len(twin) == 100
        assert np.isfinite(next_logits(engine, twin, TEXT[100:104])).all()


def test_evaluation_in_one_process(tmp_path):
    """An f16 cache and a compressed one beside each other, on the GPU, as on the CPU."""
    path = write_llama(tmp_path / "model.gguf", talkative=True)
    with pykvq.Model.open(path) as model:
        windows = evaluation.Windows(model, "the cat sat on the mat. " * 200, ctx=300, count=1, n_scored=150)
        figures = {
            device: evaluation.diverge(
                model, ["f16", "q8_0", "kivi2"], windows, batch=64, options={"device": device, "exact": True}
            )
            for device in ("cpu", "cuda")
        }
    assert figures["cuda"]["f16"]["max_kl"] == 0
    for kv_type in ("q8_0", "kivi2"):
        cpu, cuda = figures["cpu"][kv_type], figures["cuda"][kv_type]
        assert cuda["mean_kl"] == pytest.approx(cpu["mean_kl"], rel=0.2)
        assert cuda["perplexity"] == pytest.approx(cpu["perplexity"], rel=0.01)


def test_bench_takes_steps_as_large_as_a_gpu_likes(tmp_path):
    options = ["--device", "cuda", "--depths", "3000", "-p", "0", "-n", "1", "-r", "1", "--json"]
    command = [sys.executable, "-m", "pykvq", "bench", write_llama(tmp_path / "model.gguf"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert json.loads(done.stdout)["n_batch"] == 2048, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "generate MODEL -p hello --device cuda --kv kivi4 --temp 0 -n 8",
        "bench MODEL --device cuda --kv f16,kivi2 -p 32 -n 4 --depths 0,100 -r 1",
        "eval MODEL --device cuda --kv q8_0 --ctx 128 --chunks 1",
        "plan MODEL --device cuda --kv f16,turbo4",
        "doctor",
    ],
    ids=lambda command: command.split()[0],
)
def test_commands(command, tmp_path):
    path = write_llama(tmp_path / "model.gguf", talkative=True)
    arguments = [str(path) if word == "MODEL" else word for word in command.split()]
    done = subprocess.run([sys.executable, "-m", "pykvq", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    if arguments[0] == "generate":
        arguments[arguments.index("cuda")] = "cpu"
        expected = subprocess.run(
            [sys.executable, "-m", "pykvq", *arguments], capture_output=True, text=True, timeout=300
        )
        assert done.stdout == expected.stdout
    if arguments[0] == "doctor":
        assert "works" in done.stdout
