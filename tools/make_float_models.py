"""Make small models whose weights are not quantized, for tools/compare_quantize.py.

    python tools/make_float_models.py train TEXT FOLDER       # then: pykvq convert FOLDER -o MODEL-f16.gguf
    python tools/make_float_models.py dither MODEL.gguf MODEL-f16.gguf

train    A llama of 4 layers and 3.7 million parameters, with a tokenizer of its own, trained with torch on a text for
         2500 steps of 512 tokens: minutes on one core. All rows are a multiple of 256 long, as every type wants them.
dither   A quantized model as numbers again, plus uniform noise one step of its own quantization wide: weights with the
         outliers and distributions of a real model that lie on no grid. The model is a little worse than it was.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

N_VOCAB, N_STEPS, BATCH, LENGTH, RATE = 2048, 2500, 4, 128, 2e-3
SPECIAL = ("<|endoftext|>", "<|im_end|>")
STEPS_OF = {"Q4_1": (32, 15), "Q5_0": (32, 31), "Q8_0": (32, 254), "Q4_K": (32, 15), "Q6_K": (16, 63)}  # group, steps


def train(text: Path, folder: Path) -> None:
    """Write a checkpoint."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = torch.tensor(tokenized(text.read_text(), folder))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=N_VOCAB,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=N_VOCAB - 2,
            eos_token_id=N_VOCAB - 1,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(N_STEPS):
        decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / N_STEPS))
        for group in optimizer.param_groups:
            group["lr"] = RATE * decay * min(1, (step + 1) / 100)
        starts = torch.randint(0, len(tokens) - LENGTH, (BATCH,)).tolist()
        x = torch.stack([tokens[i : i + LENGTH] for i in starts])
        loss = model(input_ids=x, labels=x).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)


def tokenized(text: str, folder: Path) -> list[int]:
    """Train a byte-level tokenizer, save it, and cut the text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = N_VOCAB - len(SPECIAL)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = dict(zip(("bos_token", "eos_token"), SPECIAL, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return tokenizer.encode(text).ids


def dither(source: Path, target: Path) -> None:
    """Write an F16 file."""
    import gguf

    from pykvq.quantize import quantize

    list(quantize(source, target, "F16", requantize=True))
    random = np.random.default_rng(0)
    written = gguf.GGUFReader(target, "r+")
    values = {tensor.name: tensor.data for tensor in written.tensors}
    for tensor in gguf.GGUFReader(source).tensors:
        if tensor.tensor_type.name not in STEPS_OF:
            continue
        n_group, n_steps = STEPS_OF[tensor.tensor_type.name]
        x = values[tensor.name].astype(np.float32).reshape(-1, n_group)
        step = (x.max(axis=1, keepdims=True) - x.min(axis=1, keepdims=True)) / n_steps
        x += step * random.uniform(-0.5, 0.5, x.shape).astype(np.float32)
        values[tensor.name][...] = x.reshape(values[tensor.name].shape)
    written.data.flush()


def main() -> None:
    """Make one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "dither"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    {"train": train, "dither": dither}[arguments.what](arguments.source, arguments.target)


if __name__ == "__main__":
    main()
