"""Write a `transformers` model as the GGUF file that llama.cpp's converter would make of it.

This is the oracle's side of the architecture tests: it follows the published format (key and tensor names come from
the `gguf` package) and shares nothing with the code it checks. What architectures differ in is a row of ARCHITECTURES:

* permute: the file stores the rows of q and k so that RoPE turns pairs (2i, 2i+1) instead of (i, i + head_dim/2);
* norm_offset: gemma's checkpoints hold w of (1 + w) * x / rms(x); the file holds 1 + w;
* keys: the metadata that only this architecture has.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type


@dataclass(frozen=True)
class Architecture:
    arch: gguf.MODEL_ARCH
    permute: bool = False
    norm_offset: float = 0.0
    keys: Callable = lambda writer, config: None


def llama_keys(writer, config) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head_dim(config))
    rope_keys(writer, config.rope_parameters)
    explicit_head_dim(writer, config)


def qwen_keys(writer, config) -> None:
    rope_keys(writer, config.rope_parameters)
    explicit_head_dim(writer, config)


def gemma2_keys(writer, config) -> None:
    explicit_head_dim(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def gemma3_keys(writer, config) -> None:
    explicit_head_dim(writer, config)
    rope_keys(writer, config.rope_parameters["full_attention"])
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def phi3_keys(writer, config) -> None:
    rope = config.rope_parameters
    writer.add_rope_scaling_orig_ctx_len(rope.get("original_max_position_embeddings", config.max_position_embeddings))
    writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * head_dim(config)))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(config.sliding_window or 0)
    if "long_factor" in rope:
        writer.add_rope_scaling_attn_factors(longrope_magnitude(config))


ARCHITECTURES = {  # by config.model_type
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, permute=True, keys=llama_keys),
    "mistral": Architecture(gguf.MODEL_ARCH.LLAMA, permute=True, keys=llama_keys),
    "smollm3": Architecture(gguf.MODEL_ARCH.SMOLLM3, permute=True, keys=llama_keys),
    "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2, keys=qwen_keys),
    "qwen3": Architecture(gguf.MODEL_ARCH.QWEN3, keys=qwen_keys),
    "gemma2": Architecture(gguf.MODEL_ARCH.GEMMA2, norm_offset=1.0, keys=gemma2_keys),
    "gemma3_text": Architecture(gguf.MODEL_ARCH.GEMMA3, norm_offset=1.0, keys=gemma3_keys),
    "phi3": Architecture(gguf.MODEL_ARCH.PHI3, keys=phi3_keys),
}


def head_dim(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def explicit_head_dim(writer, config) -> None:
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)


def rope_keys(writer, rope: dict) -> None:
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    else:  # llama3's scaling becomes the tensor rope_freqs
        assert rope["rope_type"] in ("default", "llama3"), rope["rope_type"]


def longrope_magnitude(config) -> float:
    n_ctx_orig = config.rope_parameters["original_max_position_embeddings"]
    scale = config.max_position_embeddings / n_ctx_orig
    return math.sqrt(1 + math.log(scale) / math.log(n_ctx_orig)) if scale > 1 else 1.0


def rope_tensors(config) -> Iterator[tuple[str, np.ndarray]]:
    """What divides the RoPE frequencies, (n_rot / 2) each."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", llama3_divisors(rope, head_dim(config))
    if "long_factor" in rope:
        yield "rope_factors_long.weight", np.float32(rope["long_factor"])
        yield "rope_factors_short.weight", np.float32(rope["short_factor"])


def llama3_divisors(rope: dict, n_rot: int) -> np.ndarray:
    """1 for short waves, factor for long ones, between them the harmonic blend of both."""
    wavelength = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, n_rot, 2) / n_rot)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    n_turns = rope["original_max_position_embeddings"] / wavelength
    smooth = np.clip((n_turns - low) / (high - low), 0, 1)
    return np.float32(1 / ((1 - smooth) / factor + smooth))


def permute_rows(weight: np.ndarray, n_head: int) -> np.ndarray:
    """Rows i and i + head_dim/2 of each head become neighbours 2i and 2i+1."""
    n_out = weight.shape[0]
    return weight.reshape(n_head, 2, n_out // n_head // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def model_tensors(model: torch.nn.Module) -> Iterator[tuple[str, np.ndarray]]:
    """(GGUF name, float32 values in the file's order)."""
    config = model.config
    row = ARCHITECTURES[config.model_type]
    names = gguf.get_tensor_name_map(row.arch, config.num_hidden_layers)
    n_head = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        module = name.split(".")[-2]
        if row.permute and module in n_head:
            values = permute_rows(values, n_head[module])
        if module.endswith("norm"):
            values = values + np.float32(row.norm_offset)
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name, f"{config.model_type}: no GGUF name for {name}"
        yield gguf_name, values
    yield from rope_tensors(config)


def add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """Three control tokens, every byte, and filler: enough for any program to open the file."""
    assert n_vocab >= 3 + 256
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    n_filler = n_vocab - len(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens + [f"<filler{i}>" for i in range(n_filler)])
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types(types + [gguf.TokenType.NORMAL] * n_filler)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write_gguf(model: torch.nn.Module, path: Path, weight_type=Type.F32, window_pattern=None) -> None:
    """Writes the model with its matrices as weight_type and its vectors as F32; window_pattern: int or list of bool."""
    config = model.config
    row = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[row.arch])
    writer.add_name("tiny random model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if window_pattern is not None:
        writer.add_sliding_window_pattern(window_pattern)
    row.keys(writer, config)
    add_vocabulary(writer, config.vocab_size)
    for name, values in model_tensors(model):
        if values.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(values))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, weight_type), raw_dtype=weight_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
