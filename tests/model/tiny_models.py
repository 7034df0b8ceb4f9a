"""Tiny random models, one for each thing an architecture can differ in; each small enough to run in a blink.

Weights are drawn so that nothing is trivial: attention logits spread by a unit or more (so that RoPE, windows and
softcaps matter), every sublayer adds a fair part of what the residual holds, tied output logits are not only the own
embedding of the token, norm weights and biases are far from one and zero.
"""

from collections.abc import Callable

import gguf
import numpy as np
import torch
import transformers as hf
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

N_VOCAB = 288
SMALL = {
    "vocab_size": N_VOCAB,
    "hidden_size": 128,
    "intermediate_size": 288,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-2,  # large, so that another value shows
    "tie_word_embeddings": False,
}
HEADS_OF_64 = {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 1}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def llama(**changes) -> hf.PreTrainedConfig:
    return hf.LlamaConfig(**{**SMALL, **HEADS_OF_64, **changes})


def llama3(**changes) -> hf.PreTrainedConfig:
    scaling = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }  # fmt: skip
    return llama(rope_parameters=scaling, **changes)


def mistral(**changes) -> hf.PreTrainedConfig:
    return hf.MistralConfig(**{**SMALL, "head_dim": 64, "sliding_window": None, **changes})


def qwen2(**changes) -> hf.PreTrainedConfig:
    return hf.Qwen2Config(**{**SMALL, **HEADS_OF_64, **changes})


def qwen3(**changes) -> hf.PreTrainedConfig:
    return hf.Qwen3Config(**{**SMALL, "head_dim": 128, **changes})


def gemma2(**changes) -> hf.PreTrainedConfig:
    config = {
        **SMALL,
        "num_hidden_layers": 4,
        "head_dim": 128,
        "query_pre_attn_scalar": changes.get("head_dim", 128),
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 6.0,
        "sliding_window": 40,
        "tie_word_embeddings": True,
        **changes,
    }
    return hf.Gemma2Config(**config)


def gemma3(**changes) -> hf.PreTrainedConfig:
    config = {
        **SMALL,
        "num_hidden_layers": 7,  # five local, one global, one local
        "head_dim": 64,
        "query_pre_attn_scalar": changes.get("head_dim", 64),
        "sliding_window": 24,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        **changes,
    }
    return hf.Gemma3TextConfig(**config)


def gemma3_linear() -> hf.PreTrainedConfig:
    rope = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    return gemma3(rope_parameters=rope)


def phi3(**changes) -> hf.PreTrainedConfig:
    heads = {"hidden_size": 192, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
    return hf.Phi3Config(**{**SMALL, **heads, **changes})


def phi3_longrope(n_ctx_orig: int, n_rot: int = 96, **changes) -> hf.PreTrainedConfig:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.02 * i for i in range(n_rot // 2)],
        "long_factor": [1.0 + 0.3 * i for i in range(n_rot // 2)],
        "original_max_position_embeddings": n_ctx_orig,
    }
    return phi3(rope_parameters=rope, original_max_position_embeddings=n_ctx_orig, **changes)


def phi4_mini() -> hf.PreTrainedConfig:
    return phi3_longrope(
        64, n_rot=96, hidden_size=256, num_key_value_heads=1, partial_rotary_factor=0.75, tie_word_embeddings=True
    )


def smollm3(**changes) -> hf.PreTrainedConfig:
    config = {**SMALL, **HEADS_OF_64, "num_hidden_layers": 5, "tie_word_embeddings": True, "pad_token_id": 0}
    return hf.SmolLM3Config(**{**config, **changes})


CONFIGS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-mha80": lambda: llama(hidden_size=160, num_attention_heads=2, num_key_value_heads=2),
    "llama-linear": lambda: llama(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "llama-yarn": lambda: llama(rope_parameters=YARN),
    "llama-bias": lambda: llama(attention_bias=True),
    "llama3": llama3,
    "llama3-tied": lambda: llama3(tie_word_embeddings=True),
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen2-tied": lambda: qwen2(tie_word_embeddings=True),
    "qwen2-yarn": lambda: qwen2(rope_parameters=YARN),
    "qwen3": qwen3,
    "qwen3-tied-yarn": lambda: qwen3(tie_word_embeddings=True, rope_parameters=YARN),
    "gemma2": gemma2,
    "gemma2-256": lambda: gemma2(head_dim=256, num_attention_heads=2, num_key_value_heads=1),
    "gemma2-27b": lambda: gemma2(num_hidden_layers=46, hidden_size=64, head_dim=64, query_pre_attn_scalar=16),
    "gemma3": gemma3,
    "gemma3-linear": gemma3_linear,
    "gemma3-27b": lambda: gemma3(num_hidden_layers=62, hidden_size=64, query_pre_attn_scalar=16),
    "gemma2-period": lambda: gemma2(layer_types=[LOCAL, LOCAL, GLOBAL, LOCAL]),
    "gemma3-list": lambda: gemma3(layer_types=[LOCAL, GLOBAL, GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL]),
    "phi3": phi3,
    "phi3-window": lambda: phi3(sliding_window=40),
    "phi3-short": lambda: phi3_longrope(1024),
    "phi3-long": lambda: phi3_longrope(64),
    "phi4-mini": phi4_mini,
    "smollm3": smollm3,
    "smollm3-untied-yarn": lambda: smollm3(tie_word_embeddings=False, rope_parameters=YARN),
}


# What the file says of those two; the others leave it to the architecture's own pattern.
WINDOW_PATTERNS = {"gemma2-period": 3, "gemma3-list": [True, False, False, True, True, False, True]}


def tiny_model(name: str, weight_type: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> torch.nn.Module:
    """The model of that name in float32, its matrices rounded to what weight_type can hold."""
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.copy_(random_weight(key, weight.shape, model.config, generator))
            if weight.ndim == 2:
                weight.copy_(rounded(weight, weight_type))
    return model.eval()


def random_weight(key: str, shape: torch.Size, config, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    gemma = config.model_type.startswith("gemma")
    if key.endswith("bias"):
        return 0.5 * noise
    if len(shape) == 1:
        gain = 1.0
        if key == "model.norm.weight":
            gain = 8.0
        elif "q_norm" in key or "k_norm" in key:
            gain = 1.2
        elif gemma and "post_" in key:
            gain = 1.2 / config.num_hidden_layers  # many layers would be chaotic otherwise
        return gain * (1 + 0.2 * noise) - float(gemma)  # gemma's checkpoints hold the difference from one
    if "embed_tokens" in key:
        gain = 0.15 if config.tie_word_embeddings else 1.0
        return gain * noise / (shape[1] ** 0.5 if gemma else 1.0)
    gain = 1.0
    if "q_proj" in key or "k_proj" in key or "qkv_proj" in key:
        gain = 1.2
    elif "o_proj" in key or "down_proj" in key:
        gain = 0.5
    return gain * noise / shape[1] ** 0.5


def rounded(weight: torch.Tensor, weight_type: gguf.GGMLQuantizationType) -> torch.Tensor:
    packed = gguf.quants.quantize(weight.numpy(), weight_type)
    return torch.from_numpy(gguf.quants.dequantize(packed, weight_type).reshape(weight.shape).copy())


def attention_over_f16_cache(module, query, key, value, mask, sliding_window=None, **rest):
    """Plain attention over keys and values as an f16 cache holds them. The window is in the mask already."""
    return eager_attention_forward(module, query, key.half().float(), value.half().float(), mask, **rest)


hf.AttentionInterface.register("f16_cache", attention_over_f16_cache)
AttentionMaskInterface.register("f16_cache", eager_mask)


def reference_logits(model: torch.nn.Module, tokens: list[int], attention: str = "eager") -> np.ndarray:
    """(n_tokens, n_vocab), the whole text at once; attention is "eager" (all float32) or "f16_cache"."""
    model.set_attn_implementation(attention)
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
