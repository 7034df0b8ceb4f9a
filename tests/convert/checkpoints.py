"""Tiny checkpoints: the random models of tests/model, saved as transformers saves them, with a tokenizer beside."""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))

from tiny_models import N_VOCAB, tiny_model

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def byte_level_tokenizer(folder: Path, pre_tokenizer=None, **model) -> Tokenizer:
    """256 bytes, two merges and three added tokens: SmolLM's way of cutting text, unless told otherwise."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "th", "the"]
    tokenizer = Tokenizer(BPE({t: i for i, t in enumerate(tokens)}, [("t", "h"), ("th", "e")], **model))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def checkpoint(folder: Path, name: str = "llama", **saving):
    """The model, and the folder filled."""
    model = tiny_model(name)
    model.save_pretrained(folder, **saving)
    byte_level_tokenizer(folder)
    return model


def edit_config(folder: Path, **changes) -> None:
    """Change config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


__all__ = ["N_VOCAB", "TEMPLATE", "byte_level_tokenizer", "checkpoint", "edit_config"]
