"""Checkpoints of every architecture become the file that the oracle of tests/model writes, with the same logits."""

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from checkpoints import N_VOCAB, TEMPLATE, checkpoint, edit_config
from hf_gguf import write_gguf
from runner import Runner
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, WINDOW_PATTERNS

from pykvq import GGUFFile, Model
from pykvq.convert import convert, markdown_table

# keys that the oracle leaves out, or words differently
OTHERWISE = ("general.", "tokenizer.", "GGUF.", ".vocab_size")
TOKENS = np.random.default_rng(7).integers(3, N_VOCAB, 150).tolist()


def fields(path) -> dict:
    reader = gguf.GGUFReader(path)
    return {key: f.contents() for key, f in reader.fields.items() if not any(part in key for part in OTHERWISE)}


def tensors(path) -> dict[str, np.ndarray]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture(name, tmp_path):
    model = checkpoint(tmp_path / "hf", name)
    convert(tmp_path / "hf", tmp_path / "ours.gguf", "f32")
    write_gguf(model, tmp_path / "oracle.gguf", window_pattern=WINDOW_PATTERNS.get(name))
    ours, oracle = tensors(tmp_path / "ours.gguf"), tensors(tmp_path / "oracle.gguf")
    assert ours.keys() == oracle.keys()
    for key in oracle:
        np.testing.assert_array_equal(ours[key], oracle[key], err_msg=key)
    with Runner(tmp_path / "ours.gguf") as a, Runner(tmp_path / "oracle.gguf") as b:
        np.testing.assert_array_equal(a.logits(TOKENS, 150), b.logits(TOKENS, 150))


@pytest.mark.parametrize("name", ["llama3", "llama-yarn", "gemma2", "gemma3-linear", "phi3-long", "smollm3", "qwen3"])
def test_metadata(name, tmp_path):
    """Every key of the oracle is there with its value; what is more must be a default that is spelt out."""
    model = checkpoint(tmp_path / "hf", name)
    convert(tmp_path / "hf", tmp_path / "ours.gguf", "f32")
    write_gguf(model, tmp_path / "oracle.gguf")
    ours, oracle = fields(tmp_path / "ours.gguf"), fields(tmp_path / "oracle.gguf")
    assert {key: ours.get(key) for key in oracle} == oracle
    defaults = ("rope.dimension_count", "rope.scaling.yarn_", "rope.freq_base", "attention.key_", "attention.value_")
    assert [key for key in ours if key not in oracle and not any(part in key for part in defaults)] == []


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_types(kind, tmp_path):
    checkpoint(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "exact.gguf", "f32")
    convert(tmp_path / "hf", tmp_path / "model.gguf", kind)
    bounds = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 0.01}
    exact, narrow = tensors(tmp_path / "exact.gguf"), tensors(tmp_path / "model.gguf")
    for key, values in exact.items():
        assert np.abs(narrow[key] - values).max() <= bounds[kind] * np.abs(values).max()
    with GGUFFile.open(tmp_path / "model.gguf") as file:
        types = {tensor.name: tensor.type for tensor in file.tensors}
    assert types["blk.0.attn_q.weight"] == kind.upper()
    assert types["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_checkpoints_are_copied(dtype, tmp_path):
    """Matrices that have the wanted type already keep every bit."""
    model = checkpoint(tmp_path / "hf", "qwen2")
    model.to(dtype).save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "model.gguf", "f16" if dtype == torch.float16 else "bf16")
    values = tensors(tmp_path / "model.gguf")["blk.1.ffn_up.weight"]
    np.testing.assert_array_equal(values, model.model.layers[1].mlp.up_proj.weight.float().detach().numpy())


def test_shards(tmp_path):
    checkpoint(tmp_path / "one")
    checkpoint(tmp_path / "many", max_shard_size="400KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    for folder in "one", "many":
        convert(tmp_path / folder, tmp_path / f"{folder}.gguf", "f32")
    one, many = tensors(tmp_path / "one.gguf"), tensors(tmp_path / "many.gguf")
    assert one.keys() == many.keys()
    assert all(np.array_equal(one[key], many[key]) for key in one)


def test_pytorch_bin(tmp_path):
    checkpoint(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "safetensors.gguf", "f32")
    torch.save(load_file(tmp_path / "hf/model.safetensors"), tmp_path / "hf/pytorch_model.bin")
    (tmp_path / "hf/model.safetensors").unlink()
    convert(tmp_path / "hf", tmp_path / "bin.gguf", "f32")
    a, b = tensors(tmp_path / "safetensors.gguf"), tensors(tmp_path / "bin.gguf")
    assert all(np.array_equal(a[key], b[key]) for key in a)


def test_parts_of_a_multimodal_checkpoint(tmp_path):
    """Gemma 3 with a vision tower: the language model comes out of its wrapper, the rest is left."""
    checkpoint(tmp_path / "plain", "gemma3")
    checkpoint(tmp_path / "wrapped", "gemma3")
    weights = load_file(tmp_path / "wrapped/model.safetensors")
    weights = {f"language_model.{name}": value for name, value in weights.items()}
    weights["vision_tower.patch.weight"] = torch.zeros(3, 3)
    save_file(weights, tmp_path / "wrapped/model.safetensors")
    config = json.loads((tmp_path / "wrapped/config.json").read_text())
    wrapped = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": config}
    (tmp_path / "wrapped/config.json").write_text(json.dumps(wrapped))
    for folder in "plain", "wrapped":
        convert(tmp_path / folder, tmp_path / f"{folder}.gguf", "f32")
    a, b = tensors(tmp_path / "plain.gguf"), tensors(tmp_path / "wrapped.gguf")
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[key], b[key]) for key in a)


def test_general_metadata(tmp_path):
    checkpoint(tmp_path / "tiny-model")
    settings = {"temperature": 0.5, "top_k": 17, "top_p": 0.75, "repetition_penalty": 1.25, "eos_token_id": [5, 6]}
    (tmp_path / "tiny-model/generation_config.json").write_text(json.dumps(settings))
    (tmp_path / "tiny-model/README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    convert(tmp_path / "tiny-model", tmp_path / "model.gguf")
    with Model.open(tmp_path / "model.gguf") as model:
        metadata = model.gguf.metadata
        assert metadata["general.name"] == "tiny-model"
        assert metadata["general.license"] == "apache-2.0"
        assert metadata["general.sampling.temp"] == 0.5
        assert metadata["general.sampling.top_k"] == 17
        assert metadata["general.sampling.top_p"] == 0.75
        assert metadata["general.sampling.penalty_repeat"] == 1.25
        assert metadata["general.file_type"] == 1
        assert model.tokenizer.chat_template == TEMPLATE
        assert model.tokenizer.n_vocab == N_VOCAB


PEAK = """
import resource, sys, threading
from pathlib import Path
from pykvq.convert import convert
import pykvq.gguf_writer, pykvq.convert.check
convert(sys.argv[1], sys.argv[3], "f16")  # whatever memory the code itself needs
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[2], sys.argv[3], sys.argv[4], force=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_memory(kind, tmp_path):
    """Less than 1.5 times the largest tensor, though the checkpoint has several of that size."""
    checkpoint(tmp_path / "small")
    checkpoint(tmp_path / "big")
    n_ff = 180_000
    weights = load_file(tmp_path / "big/model.safetensors")
    n_embd = weights["model.norm.weight"].numel()
    for name in list(weights):
        if "mlp.down_proj" in name or "mlp.gate_proj" in name or "mlp.up_proj" in name:
            shape = (n_embd, n_ff) if "down_proj" in name else (n_ff, n_embd)
            weights[name] = torch.ones(shape)
    save_file(weights, tmp_path / "big/model.safetensors")
    edit_config(tmp_path / "big", intermediate_size=n_ff)
    largest = 4 * n_ff * n_embd
    arguments = [tmp_path / "small", tmp_path / "big", tmp_path / "out.gguf", kind]
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 9 * largest < (tmp_path / "big/model.safetensors").stat().st_size
    assert int(done.stdout) < 1.5 * largest


def logits_of_both(path) -> tuple[np.ndarray, np.ndarray]:
    """Ours and llama.cpp's, (n_tokens, n_vocab)."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    peer = llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=2)
    peer.eval(TOKENS)
    with Runner(path) as runner:
        return runner.logits(TOKENS, len(TOKENS)), np.array(peer.scores[: len(TOKENS)], np.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_opens_it_with_the_same_logits(name, tmp_path):
    path = tmp_path / f"{name}.gguf"
    checkpoint(tmp_path / "hf", name)
    convert(tmp_path / "hf", path, "f32")  # a model named phi3 would get phi3's special tokens there
    ours, theirs = logits_of_both(path)
    n = 40 if name == "phi3-window" else len(TOKENS)  # llama.cpp lets phi3 see beyond its window
    assert np.abs(ours - theirs)[:n].max() < 0.02 * ours.std()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mistral", {"sliding_window": 200}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 200, "max_window_layers": 0}),
    ],
)
def test_window_that_limits_the_context(name, changes, tmp_path):
    """Of architectures whose window neither runtime knows: within it, all see the same."""
    checkpoint(tmp_path / "hf", name)
    edit_config(tmp_path / "hf", **changes)
    convert(tmp_path / "hf", tmp_path / "model.gguf", "f32")
    with Model.open(tmp_path / "model.gguf") as model:
        assert model.info.n_ctx_train == 200
    ours, theirs = logits_of_both(tmp_path / "model.gguf")
    assert np.abs(ours - theirs).max() < 0.02 * ours.std()


def test_documentation_lists_what_converts(request):
    text = (request.config.rootpath / "docs/conversion.md").read_text()
    assert markdown_table() in text, "run: python -c 'from pykvq.convert import markdown_table as t; print(t())'"
