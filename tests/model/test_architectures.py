"""Every architecture against `transformers`: the same tiny random model in torch and as a GGUF file in the engine.

Two references. The plain one is float32 throughout; the engine's cache is f16, so the bound is 1e-3 of the range of the
logits. The other differs only in that it rounds keys and values to f16 as the cache does; what remains is the order of
float32 sums, which now and then rounds a key the other way: 1e-3 of the standard deviation bounds its mean square root.
"""

import numpy as np
import pytest
import transformers as hf
from gguf import GGMLQuantizationType as Type
from hf_gguf import write_gguf
from runner import Runner
from tiny_models import CONFIGS, N_VOCAB, WINDOW_PATTERNS, llama, reference_logits, tiny_model

N_TOKENS = 200
Q8_0_RMS = 0.05


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


def rms(x: np.ndarray) -> float:
    return np.sqrt(np.square(x).mean())


def check_exact(logits: np.ndarray, plain: np.ndarray, rounded: np.ndarray) -> None:
    assert rms(logits - rounded) < 1e-3 * rounded.std()
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


@pytest.mark.parametrize("weight_type", [Type.F16, Type.BF16, Type.Q8_0], ids=lambda t: t.name)
@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3-tied-yarn", "gemma2", "gemma3", "phi3-long", "smollm3"])
def test_narrow_weights(name, weight_type, tmp_path):
    """F16 and BF16 weights meet float activations; Q8_0 weights meet activations rounded to int8 in groups of 32."""
    model = tiny_model(name, weight_type)
    tokens, plain, rounded = decidable_text(model)
    write_gguf(model, tmp_path / "model.gguf", weight_type)
    with Runner(tmp_path / "model.gguf") as runner:
        for chunk in (N_TOKENS, 1):
            logits = runner.logits(tokens, chunk)
            if weight_type == Type.Q8_0:
                assert rms(logits - plain) < Q8_0_RMS * plain.std()
                assert (logits.argmax(1) == plain.argmax(1)).mean() > 0.9
            else:
                check_exact(logits, plain, rounded)


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


def test_tensors_without_a_place_are_refused_by_name(tmp_path):
    model = hf.AutoModelForCausalLM.from_config(llama(mlp_bias=True))
    write_gguf(model, tmp_path / "model.gguf")
    with pytest.raises(RuntimeError, match=r"blk\.0\.ffn_\w+\.bias.*not part of architecture llama"):
        Runner(tmp_path / "model.gguf")
