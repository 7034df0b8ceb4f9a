"""A tiny random model written straight to GGUF: plain, with windowed layers, or with a key bias."""

from pathlib import Path

import gguf
import numpy as np

N_VOCAB, N_EMBD, N_HEAD, N_HEAD_KV, HEAD_DIM, N_FF = 160, 64, 4, 2, 32, 96


def write(
    path: Path,
    *,
    n_layer: int = 2,
    n_ctx: int = 2048,
    n_embd: int = N_EMBD,
    n_ff: int = N_FF,
    head_dim: int = HEAD_DIM,
    window: int | None = None,
    key_bias: float = 0,
    weight_type: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """window: of the even layers (as in gemma2); key_bias: how large the key bias of a qwen2 is; neither: a llama."""
    arch = "gemma2" if window is not None else "qwen2" if key_bias else "llama"
    rng = np.random.default_rng(7)
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(n_ctx)
    w.add_embedding_length(n_embd)
    w.add_block_count(n_layer)
    w.add_feed_forward_length(n_ff)
    w.add_head_count(N_HEAD)
    w.add_head_count_kv(N_HEAD_KV)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_layer_norm_rms_eps(1e-5)
    if window is not None:
        w.add_sliding_window(window)

    def matrix(name: str, n_out: int, n_in: int) -> None:
        weights = (rng.standard_normal((n_out, n_in)) * 1.5 / n_in**0.5).astype(np.float32)
        w.add_tensor(name + ".weight", gguf.quants.quantize(weights, weight_type), raw_dtype=weight_type)

    def norm(name: str, n: int) -> None:
        w.add_tensor(name + ".weight", (1 + 0.1 * rng.standard_normal(n)).astype(np.float32))

    matrix("token_embd", N_VOCAB, n_embd)
    norm("output_norm", n_embd)
    for i in range(n_layer):
        p = f"blk.{i}."
        for name in ["attn_norm", "ffn_norm"] + (
            ["post_attention_norm", "post_ffw_norm"] if window is not None else []
        ):
            norm(p + name, n_embd)
        matrix(p + "attn_q", N_HEAD * head_dim, n_embd)
        matrix(p + "attn_k", N_HEAD_KV * head_dim, n_embd)
        matrix(p + "attn_v", N_HEAD_KV * head_dim, n_embd)
        if key_bias:
            bias = np.zeros((N_HEAD_KV, head_dim))
            bias[:, [1, 4, 15, head_dim // 2, 20, head_dim - 1]] = rng.choice([-1, 1], (N_HEAD_KV, 6)) * key_bias
            w.add_tensor(p + "attn_k.bias", bias.reshape(-1).astype(np.float32))
        matrix(p + "attn_output", n_embd, N_HEAD * head_dim)
        matrix(p + "ffn_gate", n_ff, n_embd)
        matrix(p + "ffn_up", n_ff, n_embd)
        matrix(p + "ffn_down", n_embd, n_ff)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
