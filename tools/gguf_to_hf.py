#!/usr/bin/env python3
"""Write a GGUF file back as a Hugging Face folder: config.json, model.safetensors, tokenizer.json.

usage: gguf_to_hf.py MODEL.gguf FOLDER [--type f32|f16|bf16]

The inverse of `pykvq convert`, for the architectures llama (RoPE without scaling) and qwen2 with byte-level
vocabularies. Weights that are quantized in the file come out as the numbers they stand for.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

from pykvq import GGUFFile
from pykvq._ffi import check, ffi, lib
from pykvq.tokenizer.bytelevel import word_splitter
from pykvq.tokenizer.pretokenizers import find_pre_tokenizer
from pykvq.tokenizer.vocabulary import TokenType, Vocabulary, read_vocabulary
from pykvq.weights import convert_rows, weight_type

MODELS = {"llama": ("LlamaForCausalLM", "llama"), "qwen2": ("Qwen2ForCausalLM", "qwen2")}
NAMES = {  # GGUF -> transformers
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SAFETENSORS_TYPES = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


def hf_name(name: str) -> str:
    """The tensor's name in a checkpoint."""
    *block, part, kind = name.split(".")
    prefix = f"model.layers.{block[1]}." if block else ""
    if part not in NAMES:
        raise SystemExit(f"tensor '{name}': this tool has no name for it")
    return f"{prefix}{NAMES[part]}.{kind}"


def config_of(file: GGUFFile, n_vocab: int) -> dict[str, object]:
    """config.json."""
    get = file.metadata.get
    arch = str(get("general.architecture"))
    if arch not in MODELS or get(f"{arch}.rope.scaling.type", "none") != "none":
        raise SystemExit(f"{file.path}: architecture {arch} with its RoPE scaling is more than this tool writes")
    n_head, n_embd = get(f"{arch}.attention.head_count"), get(f"{arch}.embedding_length")
    names = {tensor.name for tensor in file.tensors}
    return {
        "architectures": [MODELS[arch][0]],
        "model_type": MODELS[arch][1],
        "hidden_size": n_embd,
        "intermediate_size": get(f"{arch}.feed_forward_length"),
        "num_hidden_layers": get(f"{arch}.block_count"),
        "num_attention_heads": n_head,
        "num_key_value_heads": get(f"{arch}.attention.head_count_kv", n_head),
        "head_dim": get(f"{arch}.attention.key_length", n_embd // n_head),
        "max_position_embeddings": get(f"{arch}.context_length"),
        "rms_norm_eps": get(f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_theta": get(f"{arch}.rope.freq_base", 10000.0),
        "vocab_size": n_vocab,
        "hidden_act": "silu",
        "attention_bias": arch == "llama" and "blk.0.attn_q.bias" in names,
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": get("tokenizer.ggml.eos_token_id"),
    }


def write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json."""
    from tokenizers import AddedToken, Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.normalizers import NFC

    if vocabulary.model != "gpt2":
        raise SystemExit("the vocabulary is not byte-level BPE; this tool writes no other")
    row = find_pre_tokenizer(vocabulary.pre)
    merges = [tuple(merge.split(" ")) for merge in vocabulary.merges]
    tokenizer = Tokenizer(BPE(vocabulary.ids, merges, ignore_merges=row.ignore_merges))
    tokenizer.pre_tokenizer = word_splitter(row)
    tokenizer.decoder = decoders.ByteLevel()
    if row.nfc:
        tokenizer.normalizer = NFC()
    for kind, special in (TokenType.CONTROL, True), (TokenType.USER_DEFINED, False):
        tokens = [vocabulary.tokens[i] for i in vocabulary.of_type(kind)]
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {
        f"{role}_token": vocabulary.tokens[i] for role, i in vocabulary.token_ids.items() if role in ("bos", "eos")
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": vocabulary.chat_template, **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def tensor_values(file: GGUFFile, index: int, n_head: int | None, kind: str) -> np.ndarray:
    """The bytes of a tensor; n_head: rows go back from pairs to halves of heads."""
    tensor = file.tensors[index]
    raw = ffi.new("pykvq_gguf_tensor *")
    check(lib.pykvq_gguf_tensor_at(file.handle, index, raw))
    n_per_row = tensor.shape[-1]
    n_rows = math.prod(tensor.shape) // n_per_row
    old, new = weight_type(tensor.type), weight_type(kind)
    data, _ = convert_rows(raw.data, old, new, (n_rows, n_per_row))
    if n_head is None:
        return data
    if len(tensor.shape) == 1:
        n_rows, n_per_row = n_per_row, 1
    pairs = data.reshape(n_head, n_rows // n_head // 2, 2, n_per_row * new.block_bytes)
    return np.ascontiguousarray(pairs.swapaxes(1, 2))


def write_tensors(file: GGUFFile, config: dict, kind: str, path: Path) -> None:
    """model.safetensors."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    permuted = config["model_type"] == "llama"
    header: dict[str, object] = {}
    offset = 0
    for tensor in file.tensors:
        n_bytes = weight_type(kind).n_bytes(math.prod(tensor.shape))
        header[hf_name(tensor.name)] = {
            "dtype": SAFETENSORS_TYPES[kind],
            "shape": tensor.shape,
            "data_offsets": (offset, offset + n_bytes),
        }
        offset += n_bytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for i, tensor in enumerate(file.tensors):
            n_head = heads.get(tensor.name.split(".")[-2]) if permuted else None
            out.write(tensor_values(file, i, n_head, kind))


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--type", default="f16", choices=[kind.lower() for kind in SAFETENSORS_TYPES])
    arguments = parser.parse_args()
    with GGUFFile.open(arguments.model) as file:
        vocabulary = read_vocabulary(file.metadata)
        config = config_of(file, vocabulary.n_vocab)
        arguments.folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(vocabulary, arguments.folder)
        write_tensors(file, config, arguments.type.upper(), arguments.folder / "model.safetensors")
    (arguments.folder / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
