"""What a checkpoint of each architecture becomes: rows of data, from config.json to metadata and tensors."""

# What checkpoints say in JSON has no types.
# pyright: basic
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, UnsupportedError

Json = dict[str, Any]
Fields = Any  # a gguf.GGUFWriter, whose add_* methods write the metadata

LOCAL, GLOBAL = "sliding_attention", "full_attention"
_LONGROPE = ("longrope", "su")  # su: its first name


@dataclass(frozen=True)
class Architecture:
    """A row.

    Attributes:
        name: GGUF's.
        models: examples, for people.
        defaults: what transformers assumes where config.json is silent.
        permute: q and k rows are stored so that RoPE turns pairs (2i, 2i+1) instead of (i, i + head_dim/2).
        norm_offset: the checkpoint's norm weights lack this much.
        activation: the one the runtime computes.
        checks: what config.json may ask for that the runtime does otherwise; each raises.
        keys: the metadata that only some architectures have.
    """

    name: str
    models: str
    defaults: Json = field(default_factory=dict[str, Any])
    permute: bool = False
    norm_offset: float = 0.0
    activation: str = "silu"
    checks: tuple[Callable[[Json], None], ...] = ()
    keys: tuple[Callable[[Fields, Json], None], ...] = ()


# ---- config.json ----


def settings(config: Json, row: Architecture) -> Json:
    """The configuration with defaults filled in, and one form for what has had several."""
    inner = config.get("text_config") or {}
    merged = {**row.defaults, **config, **inner}
    if merged.get("num_key_value_heads") is None:
        merged["num_key_value_heads"] = merged.get("num_attention_heads")
    for key in _REQUIRED:
        if not isinstance(merged.get(key), int) or merged[key] < 1:
            raise FormatError(f"config.json: {key}: expected a positive integer, found {merged.get(key)!r}")
    merged["rope"] = _rope(merged)
    return merged


_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "vocab_size",
)


def head_dim(config: Json) -> int:
    """Elements of a head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _rope(config: Json) -> dict[str, Json]:
    """RoPE parameters of each kind of layer; only gemma3 has more than GLOBAL."""
    given = config.get("rope_parameters")
    if given and GLOBAL in given:
        return {kind: _one_rope(config, given[kind]) for kind in given}
    rope = _one_rope(config, given or {**(config.get("rope_scaling") or {}), "rope_theta": config.get("rope_theta")})
    local_base = config.get("rope_local_base_freq")
    return {GLOBAL: rope, **({LOCAL: {"rope_type": "default", "rope_theta": local_base}} if local_base else {})}


def _one_rope(config: Json, given: Json) -> Json:
    rope = {key: value for key, value in given.items() if value is not None}
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    if config.get("original_max_position_embeddings"):
        rope.setdefault("original_max_position_embeddings", config["original_max_position_embeddings"])
    rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    rope.setdefault("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    return rope


# ---- checks ----


def check(config: Json, row: Architecture) -> None:
    """Refuse what the runtime would compute differently."""
    activation = config.get("hidden_activation") or config.get("hidden_act") or row.activation
    if activation not in (row.activation, {"gelu_pytorch_tanh": "gelu"}.get(row.activation, row.activation)):
        raise UnsupportedError(f"config.json: activation {activation!r}; {row.name} runs with {row.activation!r} only")
    known = ("default", "linear", "yarn", *(["llama3"] if row.permute else []))
    for rope in config["rope"].values():
        kind = rope["rope_type"]
        if kind not in ((*_LONGROPE, "default") if row.name == "phi3" else known):
            raise UnsupportedError(f"config.json: rope_type {kind!r} is not supported for {row.name}")
    for one in row.checks:
        one(config)


def _check_no_rope_layers(config: Json) -> None:
    n = config["num_hidden_layers"]
    expected = [int((i + 1) % 4 != 0) for i in range(n)]
    layers = config.get("no_rope_layers")
    if (layers and layers != expected) or (not layers and config.get("no_rope_layer_interval", 4) != 4):
        raise UnsupportedError("config.json: no_rope_layers: only every fourth layer may be without RoPE")


def _check_query_scale(n_layer_wide: int) -> Callable[[Json], None]:
    """The largest model divides by the mean head instead of head_dim; the file has no key for it."""

    def run(config: Json) -> None:
        wide = config["num_hidden_layers"] == n_layer_wide
        expected = config["hidden_size"] // config["num_attention_heads"] if wide else head_dim(config)
        if config.get("query_pre_attn_scalar", expected) != expected:
            raise UnsupportedError(
                f"config.json: query_pre_attn_scalar is {config['query_pre_attn_scalar']}, the runtime uses {expected}"
            )

    return run


# ---- metadata ----


def add_keys(fields: Fields, config: Json, row: Architecture) -> None:
    """Write the metadata of an architecture."""
    fields.add_block_count(config["num_hidden_layers"])
    fields.add_context_length(_context_length(config, row))
    fields.add_embedding_length(config["hidden_size"])
    fields.add_feed_forward_length(config["intermediate_size"])
    fields.add_head_count(config["num_attention_heads"])
    fields.add_head_count_kv(config["num_key_value_heads"])
    fields.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    fields.add_vocab_size(config["vocab_size"])
    if config.get("head_dim"):
        fields.add_key_length(config["head_dim"])
        fields.add_value_length(config["head_dim"])
    fields.add_rope_freq_base(float(config["rope"][GLOBAL]["rope_theta"]))
    for add in row.keys:
        add(fields, config)


def _context_length(config: Json, row: Architecture) -> int:
    """The trained context; no more than a window that the runtime does not know for this architecture."""
    window = config.get("sliding_window")
    windowed = _window in row.keys or _phi3_keys in row.keys
    if not window or windowed or config.get("use_sliding_window") is False:
        return config["max_position_embeddings"]
    return min(window, config["max_position_embeddings"])


def _rope_dimensions(fields: Fields, config: Json) -> None:
    fields.add_rope_dimension_count(head_dim(config))


def _rope_scaling(fields: Fields, config: Json) -> None:
    import gguf

    rope = config["rope"][GLOBAL]
    if rope["rope_type"] == "linear":
        fields.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        fields.add_rope_scaling_factor(float(rope["factor"]))
    elif rope["rope_type"] == "yarn":
        fields.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        fields.add_rope_scaling_factor(float(rope["factor"]))
        fields.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for key, add in (
            ("attention_factor", fields.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", fields.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", fields.add_rope_scaling_yarn_beta_slow),
        ):
            if key in rope:
                add(float(rope[key]))


def _caps(fields: Fields, config: Json) -> None:
    if config.get("attn_logit_softcapping"):
        fields.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        fields.add_final_logit_softcapping(config["final_logit_softcapping"])


def _window(fields: Fields, config: Json) -> None:
    fields.add_sliding_window(config["sliding_window"])
    n, period = config["num_hidden_layers"], config["window_period"]
    usual = [LOCAL if i % period < period - 1 else GLOBAL for i in range(n)]
    layers = config.get("layer_types") or usual
    if layers != usual:
        fields.add_sliding_window_pattern([kind == LOCAL for kind in layers])


def _local_rope(fields: Fields, config: Json) -> None:
    if LOCAL in config["rope"]:
        fields.add_rope_freq_base_swa(float(config["rope"][LOCAL]["rope_theta"]))


def _phi3_keys(fields: Fields, config: Json) -> None:
    rope = config["rope"][GLOBAL]
    fields.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    fields.add_rope_dimension_count(_n_rot(config))
    fields.add_sliding_window(config.get("sliding_window") or 0)
    if "long_factor" in rope:
        ratio = config["max_position_embeddings"] / rope["original_max_position_embeddings"]
        magnitude = math.sqrt(1 + math.log(ratio) / math.log(rope["original_max_position_embeddings"]))
        fields.add_rope_scaling_attn_factors(magnitude if ratio > 1 else 1.0)


def _n_rot(config: Json) -> int:
    return int(config["rope"][GLOBAL]["partial_rotary_factor"] * head_dim(config))


def extra_tensors(config: Json) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Tensors that config.json holds as numbers: what divides the RoPE frequencies, (n_rot / 2) each."""
    rope = config["rope"][GLOBAL]
    if rope["rope_type"] == "llama3":
        yield "rope_freqs.weight", _llama3_divisors(rope, head_dim(config))
    for key, name in ("long_factor", "rope_factors_long.weight"), ("short_factor", "rope_factors_short.weight"):
        if key in rope:
            if len(rope[key]) != _n_rot(config) // 2:
                raise FormatError(f"config.json: {key} has {len(rope[key])} numbers, expected {_n_rot(config) // 2}")
            yield name, np.array(rope[key], np.float32)


def _llama3_divisors(rope: Json, n_rot: int) -> npt.NDArray[np.float32]:
    """1 for short waves, factor for long ones, in between the harmonic mean of both by how often the wave turns."""
    wavelength = 2 * np.pi * float(rope["rope_theta"]) ** (np.arange(0, n_rot, 2) / n_rot)
    n_turns = rope["original_max_position_embeddings"] / wavelength
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    short = np.clip((n_turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - short) / rope["factor"] + short)).astype(np.float32)


# ---- the rows ----

_LLAMA_KEYS = (_rope_dimensions, _rope_scaling)
_GEMMA = {"tie_word_embeddings": True, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh"}
_GEMMA2 = {
    **_GEMMA,
    "window_period": 2,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256,
}
_GEMMA3 = {
    **_GEMMA,
    "window_period": 6,
    "sliding_window": 4096,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 262208,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "query_pre_attn_scalar": 256,
}

_LLAMA = Architecture("llama", "Llama 2 and 3, SmolLM, TinyLlama", permute=True, keys=_LLAMA_KEYS)
_MISTRAL = Architecture(
    "llama", "Mistral, Mistral Nemo", defaults={"sliding_window": 4096}, permute=True, keys=_LLAMA_KEYS
)
_GEMMA3_ROW = Architecture(
    "gemma3",
    "Gemma 3, text",
    defaults=_GEMMA3,
    norm_offset=1.0,
    activation="gelu_pytorch_tanh",
    checks=(_check_query_scale(62),),
    keys=(_rope_scaling, _caps, _window, _local_rope),
)

ARCHITECTURES = {  # by what config.json calls them
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _MISTRAL,
    "SmolLM3ForCausalLM": Architecture(
        "smollm3",
        "SmolLM3",
        defaults={"tie_word_embeddings": True, "rope_theta": 2e6},
        permute=True,
        checks=(_check_no_rope_layers,),
        keys=_LLAMA_KEYS,
    ),
    "Qwen2ForCausalLM": Architecture("qwen2", "Qwen 2 and 2.5, DeepSeek-R1-Distill-Qwen", keys=(_rope_scaling,)),
    "Qwen3ForCausalLM": Architecture("qwen3", "Qwen 3, dense", defaults={"head_dim": 128}, keys=(_rope_scaling,)),
    "Gemma2ForCausalLM": Architecture(
        "gemma2",
        "Gemma 2",
        defaults=_GEMMA2,
        norm_offset=1.0,
        activation="gelu_pytorch_tanh",
        checks=(_check_query_scale(46),),
        keys=(_rope_scaling, _caps, _window),
    ),
    "Gemma3ForCausalLM": _GEMMA3_ROW,
    "Gemma3ForConditionalGeneration": _GEMMA3_ROW,
    "Phi3ForCausalLM": Architecture("phi3", "Phi 3, 3.5 and 4, also mini", keys=(_phi3_keys,)),
}


def find(config: Json) -> tuple[str, Architecture]:
    """The name and the row of the architecture that config.json names."""
    names = config.get("architectures") or []
    known = [name for name in names if name in ARCHITECTURES]
    if not known:
        what = ", ".join(map(str, names)) or f"unnamed, model_type {config.get('model_type')!r}"
        raise UnsupportedError(f"config.json: architecture {what}: not supported; known are {', '.join(ARCHITECTURES)}")
    return known[0], ARCHITECTURES[known[0]]


# ---- tensors ----

# Parts of the checkpoint that are not the language model, or that nobody reads
_SKIPPED_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_SKIPPED_SUFFIXES = (".rotary_emb.inv_freq",)
_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}


def plain_name(name: str) -> str | None:
    """A checkpoint's tensor name without the wrapper of a multimodal model; None: not part of the file."""
    if name.startswith(_SKIPPED_PREFIXES) or name.endswith(_SKIPPED_SUFFIXES):
        return None
    for prefix, plain in _PREFIXES.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


# GGUF name within a layer -> shape; "q" and "kv" are the widths of all heads
_LAYER_SHAPES = {
    "attn_norm.weight": ("embd",),
    "attn_q.weight": ("q", "embd"),
    "attn_k.weight": ("kv", "embd"),
    "attn_v.weight": ("kv", "embd"),
    "attn_qkv.weight": ("qkv", "embd"),
    "attn_q.bias": ("q",),
    "attn_k.bias": ("kv",),
    "attn_v.bias": ("kv",),
    "attn_q_norm.weight": ("head",),
    "attn_k_norm.weight": ("head",),
    "attn_output.weight": ("embd", "q"),
    "attn_output.bias": ("embd",),
    "post_attention_norm.weight": ("embd",),
    "ffn_norm.weight": ("embd",),
    "ffn_gate.weight": ("ff", "embd"),
    "ffn_up.weight": ("ff", "embd"),
    "ffn_down.weight": ("embd", "ff"),
    "post_ffw_norm.weight": ("embd",),
}
_GLOBAL_SHAPES = {
    "token_embd.weight": ("vocab", "embd"),
    "output.weight": ("vocab", "embd"),
    "output_norm.weight": ("embd",),
}


def expected_shape(gguf_name: str, config: Json, row: Architecture) -> tuple[int, ...] | None:
    """The shape that config.json implies; None: the runtime has no place for such a tensor."""
    n_head, n_head_kv, dim = config["num_attention_heads"], config["num_key_value_heads"], head_dim(config)
    sizes = {
        "embd": config["hidden_size"],
        "ff": config["intermediate_size"],
        "vocab": config["vocab_size"],
        "head": dim,
        "q": n_head * dim,
        "kv": n_head_kv * dim,
        "qkv": (n_head + 2 * n_head_kv) * dim,
    }
    if row.name == "phi3" and gguf_name.endswith("ffn_up.weight"):  # gate and up in one
        return 2 * sizes["ff"], sizes["embd"]
    suffix = gguf_name.split(".", 2)[-1] if gguf_name.startswith("blk.") else None
    shape = _LAYER_SHAPES.get(suffix) if suffix else _GLOBAL_SHAPES.get(gguf_name)
    return tuple(sizes[size] for size in shape) if shape else None
