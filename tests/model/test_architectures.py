"""Every architecture against `transformers`: the same tiny random model in torch and as a GGUF file in the engine.

Two references. The plain one is float32 throughout; the engine's cache is f16, so the bound is 1e-3 of the range of the
logits. The other differs only in that it rounds keys and values to f16 as the cache does; against it the bound is 1e-3
of their standard deviation, and what remains is the order of float32 sums.
"""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hf_gguf import write_gguf
from runner import Runner
from tiny_models import CONFIGS, N_VOCAB, WINDOW_PATTERNS, reference_logits, tiny_model

N_TOKENS = 200


def random_tokens(seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, N_VOCAB, N_TOKENS).tolist()


def smallest_lead(logits: np.ndarray) -> float:
    """How far the largest logit is ahead of the second, at the position where that is least."""
    top = np.sort(logits, axis=1)
    return (top[:, -1] - top[:, -2]).min() / logits.std()


def decidable_text(model) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The first random text whose likeliest next token is clear everywhere, and its logits by both references."""
    for seed in range(200):
        tokens = random_tokens(seed)
        plain = reference_logits(model, tokens)
        if smallest_lead(plain) < 2e-3:
            continue
        rounded = reference_logits(model, tokens, "f16_cache")
        if smallest_lead(rounded) > 2e-3 and np.array_equal(plain.argmax(1), rounded.argmax(1)):
            return tokens, plain, rounded
    raise AssertionError("no random text without near ties")


def check_exact(logits: np.ndarray, plain: np.ndarray, rounded: np.ndarray) -> None:
    assert np.abs(logits - rounded).max() < 1e-3 * rounded.std()
    assert np.abs(logits - plain).max() < 1e-3 * (plain.max() - plain.min())
    np.testing.assert_array_equal(logits.argmax(1), plain.argmax(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_weights(name, tmp_path):
    model = tiny_model(name)
    tokens, plain, rounded = decidable_text(model)
    write_gguf(model, tmp_path / "model.gguf", window_pattern=WINDOW_PATTERNS.get(name))
    with Runner(tmp_path / "model.gguf") as runner:
        for chunk in (N_TOKENS, 64, 7, 1):
            check_exact(runner.logits(tokens, chunk), plain, rounded)


# Rounded activations: bfloat16 keeps 8 bits, the integer kernels 7 bits and a sign of the largest of 32.
LOOSE = {Type.F16: (2e-3, 1.0), Type.BF16: (0.1, 0.95), Type.Q8_0: (0.1, 0.95)}  # max error / std, same argmax


@pytest.mark.parametrize("weight_type", LOOSE)
@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3-tied-yarn", "gemma2", "gemma3", "phi3-long", "smollm3"])
def test_narrow_weights(name, weight_type, tmp_path):
    model = tiny_model(name, weight_type)
    tokens, _, rounded = decidable_text(model)
    write_gguf(model, tmp_path / "model.gguf", weight_type)
    max_error, same_argmax = LOOSE[weight_type]
    with Runner(tmp_path / "model.gguf") as runner:
        for chunk in (N_TOKENS, 1):
            logits = runner.logits(tokens, chunk)
            assert np.abs(logits - rounded).max() < max_error * rounded.std()
            assert (logits.argmax(1) == rounded.argmax(1)).mean() >= same_argmax


def test_longrope_follows_the_context_of_the_engine(tmp_path):
    """Short factors while the engine's context fits the original one, long factors beyond."""
    model = tiny_model("phi3-long")
    n_ctx_orig = model.config.rope_parameters["original_max_position_embeddings"]
    write_gguf(model, tmp_path / "model.gguf")
    tokens = random_tokens(0)[:n_ctx_orig]
    short = reference_logits(model, tokens, "f16_cache")  # transformers goes by the text, which still fits
    with Runner(tmp_path / "model.gguf", n_ctx=n_ctx_orig) as runner:
        assert np.abs(runner.logits(tokens, n_ctx_orig) - short).max() < 1e-3 * short.std()
    with Runner(tmp_path / "model.gguf", n_ctx=n_ctx_orig + 64) as runner:
        assert np.abs(runner.logits(tokens, n_ctx_orig) - short).max() > 0.1 * short.std()
