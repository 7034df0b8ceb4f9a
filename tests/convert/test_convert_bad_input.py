"""What cannot be converted ends with one sentence, and leaves nothing behind."""

import json
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
from checkpoints import byte_level_tokenizer, checkpoint, edit_config
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from pykvq import FileError, FormatError, PykvqError, UnsupportedError
from pykvq.convert import convert


@pytest.fixture
def folder(tmp_path):
    checkpoint(tmp_path / "hf")
    return tmp_path / "hf"


def refused(folder, error: type[PykvqError], *words: str, **options) -> None:
    """The conversion fails with a sentence that has these words; no file appears, not even a part."""
    target = folder.parent / "out.gguf"
    with pytest.raises(error) as caught:
        convert(folder, target, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert [word for word in words if word not in sentence] == []
    assert list(folder.parent.glob("out.gguf*")) == []


def test_unknown_architecture(folder):
    edit_config(folder, architectures=["MambaForCausalLM"])
    refused(folder, UnsupportedError, "MambaForCausalLM", "LlamaForCausalLM", "Gemma3ForCausalLM")


def test_no_folder(tmp_path):
    refused(tmp_path / "nowhere", FileError, "nowhere", "no such folder")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, FileError, "neither model.safetensors nor pytorch_model.bin")


def test_missing_shard(tmp_path):
    checkpoint(tmp_path / "hf", max_shard_size="400KB")
    shard = sorted((tmp_path / "hf").glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(tmp_path / "hf", FileError, shard.name, "missing")


@pytest.mark.parametrize("n_kept", [0, 4, 100, -1])
def test_truncated_safetensors(folder, n_kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:n_kept])
    refused(folder, FormatError, "model.safetensors", "truncated")


def test_damaged_header(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"[[[["
    path.write_bytes(data)
    refused(folder, FormatError, "model.safetensors", "header")


def test_shape_against_config(folder):
    edit_config(folder, intermediate_size=300)
    refused(folder, FormatError, "mlp", "288", "300", "config.json")


def test_vocabulary_against_config(folder):
    edit_config(folder, vocab_size=999)
    refused(folder, FormatError, "lm_head", "999", "config.json")


def test_fewer_layers_than_config(folder):
    edit_config(folder, num_hidden_layers=4)
    refused(folder, FormatError, "lacks", "blk.3.")


def test_more_layers_than_config(folder):
    edit_config(folder, num_hidden_layers=2)
    refused(folder, FormatError, "model.layers.2", "not part of")


def test_config_without_a_size(folder):
    edit_config(folder, hidden_size=None)
    refused(folder, FormatError, "hidden_size", "positive integer")


def test_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    refused(folder, FormatError, "config.json", "not JSON")


def test_rope_that_is_not_known(folder):
    edit_config(folder, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    refused(folder, UnsupportedError, "dynamic", "rope_type")


def test_other_activation(folder):
    edit_config(folder, hidden_act="relu")
    refused(folder, UnsupportedError, "relu", "silu")


def test_values_that_are_not_finite(tmp_path):
    import torch

    model = checkpoint(tmp_path / "hf")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "hf")
    refused(tmp_path / "hf", PykvqError, "layers.1.mlp.up_proj", "not finite")


def test_existing_output(folder):
    target = folder.parent / "out.gguf"
    target.write_text("precious")
    with pytest.raises(FileError, match="exists already; --force"):
        convert(folder, target)
    assert target.read_text() == "precious"
    convert(folder, target, force=True)
    assert target.read_bytes()[:4] == b"GGUF"
    assert [path.name for path in folder.parent.glob("out*")] == ["out.gguf"]


def test_full_disk_before_writing(folder, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    refused(folder, FileError, "1,000 free", "needs")


def test_full_disk_while_writing(folder):
    """The system refuses to let the file grow: the old file stays, the new one is not there."""
    target = folder.parent / "out.gguf"
    target.write_text("precious")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    command = [sys.executable, "-m", "pykvq", "convert", folder, "-o", target, "--force"]
    done = subprocess.run(list(map(str, command)), preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 1
    assert "out.gguf: cannot be written: File too large" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert target.read_text() == "precious"
    assert [path.name for path in folder.parent.glob("out*")] == ["out.gguf"]


def test_folder_that_is_not_there_for_the_output(folder):
    with pytest.raises(FileError, match="No such file or directory"):
        convert(folder, folder.parent / "nowhere/out.gguf")


def test_unknown_pre_tokenizer(folder):
    split = pre_tokenizers.Split(Regex("[a-f]+"), "isolated")
    byte_level_tokenizer(folder, pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)]))
    refused(folder, UnsupportedError, "unknown pre-tokenizer", "[a-f]+", "llama-bpe")


def test_unknown_normalizer(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(content))
    refused(folder, UnsupportedError, "unknown pre-tokenizer", "Lowercase")


def test_unigram(folder):
    Tokenizer(models.Unigram([("a", 0.0), ("b", -1.0)], 0)).save(str(folder / "tokenizer.json"))
    refused(folder, UnsupportedError, "Unigram", "BPE")


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    refused(folder, FileError, "neither tokenizer.json nor tokenizer.model")


def test_tokenizer_that_differs(folder, monkeypatch):
    """The check at the end is real: a merge that is lost on the way is found out."""
    from pykvq.convert import vocabulary

    monkeypatch.setattr(vocabulary, "_merges", lambda content: ["t h"])
    refused(folder, FormatError, "tokenizer: differs from the original", "token")


def test_more_tokens_than_rows(folder):
    tokenizer = byte_level_tokenizer(folder)
    tokenizer.add_tokens([f"<more{i}>" for i in range(100)])
    tokenizer.save(str(folder / "tokenizer.json"))
    refused(folder, FormatError, "361 tokens", "288 rows")


def test_unknown_type(folder):
    refused(folder, PykvqError, "f64", "q8_0", kind="f64")
