"""Whole files: which tensor gets which type, what is kept, what is refused; importance matrices."""

import ctypes
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

from checkpoints import checkpoint

from pykvq import ArgumentError, FileError, FormatError, GGUFFile, Model, NumericError, UnsupportedError, generate
from pykvq.imatrix import ImportanceMatrix, collect
from pykvq.quantize import MIXES, quantize

WIDTH, N_FF, N_VOCAB = 512, 768, 300


def write_model(path, *, n_layer=16, n_head_kv=2, tied=False, width=WIDTH, edit=None):
    """A llama whose rows superblocks divide, with all the tensors that rules speak of."""
    random = np.random.default_rng(0)
    n_kv = width // 8 * n_head_kv
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(8)
    writer.add_head_count_kv(n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 8)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("llama")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    writer.add_token_list(pieces + [f"w{i}" for i in range(N_VOCAB - len(pieces))])
    writer.add_token_scores([0.0] * N_VOCAB)
    writer.add_token_types(kinds + [1] * (N_VOCAB - len(kinds)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_array("test.strings", ["a", "", "\u00fc"])
    shapes = {"token_embd": (N_VOCAB, width)} | ({} if tied else {"output": (N_VOCAB, width)})
    for i in range(n_layer):
        layer = {
            "attn_q": (width, width), "attn_k": (n_kv, width), "attn_v": (n_kv, width), "attn_output": (width, width),
            "ffn_gate": (N_FF, width), "ffn_up": (N_FF, width), "ffn_down": (width, N_FF),
        }  # fmt: skip
        shapes |= {f"blk.{i}.{part}": shape for part, shape in layer.items()}
        shapes |= {f"blk.{i}.attn_norm": (width,), f"blk.{i}.ffn_norm": (width,)}
    shapes["output_norm"] = (width,)
    for name, shape in shapes.items():
        values = (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        values = 1 + values if len(shape) == 1 else values.astype(np.float16)
        if edit:
            edit(name, values)
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("quantize") / "model.gguf")


def types_of(path) -> dict[str, str]:
    with GGUFFile.open(path) as file:
        return {tensor.name: tensor.type for tensor in file.tensors}


@pytest.mark.parametrize("mix", MIXES)
def test_every_mix(mix, model, tmp_path):
    report = list(quantize(model, tmp_path / "out.gguf", mix))
    assert {t.name: t.new_type for t in report} == types_of(tmp_path / "out.gguf")
    original = {t.name: t for t in gguf.GGUFReader(model).tensors}
    for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        before = original[tensor.name].data.astype(np.float64)
        after = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64).reshape(before.shape)
        row = next(t for t in report if t.name == tensor.name)
        error = np.sqrt(((before - after) ** 2).sum() / (before**2).sum())
        assert error == pytest.approx(row.loss.relative if row.loss else 0.0, rel=1e-3)
        assert error < 0.3
    with Model.open(tmp_path / "out.gguf") as opened:
        assert opened.gguf.metadata["test.strings"] == ["a", "", "\u00fc"]
        assert opened.gguf.metadata["general.quantization_version"] == 2
        assert generate(opened, [5, 6, 7], max_tokens=3, ctx=64, ignore_eog=True).close() is None


def test_rules():
    """Some of the published rules, spelt out."""
    from pykvq.gguf import Tensor
    from pykvq.quantize import _Shape, choose_type

    def chosen(mix, name, n_in=512, *, n_layer=32, tied=False, head_group=1, weighted=False, large=False):
        shape = _Shape(n_layer, head_group, large, tied)
        return choose_type(MIXES[mix], Tensor(name, "F16", (64, n_in), 0), shape, weighted=weighted)

    assert chosen("Q4_K_M", "output.weight") == "Q6_K"
    assert chosen("Q8_0", "output.weight") == "Q8_0"
    assert chosen("Q4_0", "token_embd.weight") == "Q4_0"
    assert chosen("Q4_0", "token_embd.weight", tied=True) == "Q6_K"
    more = [i for i in range(32) if chosen("Q4_K_M", f"blk.{i}.ffn_down.weight") == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert [chosen("Q4_K_S", f"blk.{i}.attn_v.weight") for i in (3, 4)] == ["Q5_K", "Q4_K"]
    assert [chosen("Q3_K_M", f"blk.{i}.ffn_down.weight") for i in (1, 2)] == ["Q5_K", "Q4_K"]
    assert [chosen("Q2_K", "blk.9.attn_v.weight", head_group=n) for n in (3, 4)] == ["Q3_K", "Q4_K"]
    assert [chosen("Q4_0", "blk.0.ffn_down.weight", weighted=w) for w in (False, True)] == ["Q4_0", "Q4_1"]
    assert chosen("Q4_K_S", "blk.9.attn_v.weight", large=True) == "Q5_K"
    assert chosen("Q4_K_M", "blk.0.attn_norm.weight") == "F16"  # as it was
    assert [chosen(m, "blk.9.attn_q.weight", 576) for m in ("Q2_K", "Q4_K_S", "Q5_K_S", "Q6_K")] == [
        "Q4_0",
        "Q5_0",
        "Q5_1",
        "Q8_0",
    ]
    assert chosen("Q4_K_M", "blk.9.attn_q.weight", 100) == "F16"


@pytest.mark.parametrize(("tied", "n_head_kv"), [(False, 2), (True, 8)])
@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix not in ("F32", "F16", "BF16")])
def test_the_same_types_as_llama_cpp(mix, tied, n_head_kv, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = write_model(tmp_path / "model.gguf", tied=tied, n_head_kv=n_head_kv)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = MIXES[mix].file_type
    params.nthread = 2
    theirs = tmp_path / "theirs.gguf"
    assert llama_cpp.llama_model_quantize(str(model).encode(), str(theirs).encode(), ctypes.byref(params)) == 0
    list(quantize(model, tmp_path / "ours.gguf", mix))
    assert types_of(tmp_path / "ours.gguf") == types_of(theirs)


def test_metadata_is_kept(model, tmp_path):
    list(quantize(model, tmp_path / "out.gguf", "Q4_K_M"))
    with GGUFFile.open(model) as old, GGUFFile.open(tmp_path / "out.gguf") as new:
        changed = ("general.quantization_version", "general.file_type")
        assert {k: v for k, v in new.metadata.items() if k not in changed} == dict(old.metadata)
        assert new.metadata["general.file_type"] == 15


def test_unknown_mix(model, tmp_path):
    with pytest.raises(ArgumentError, match="Q9: no such type; known are F32"):
        list(quantize(model, tmp_path / "out.gguf", "Q9"))


def test_already_quantized(model, tmp_path):
    list(quantize(model, tmp_path / "q8.gguf", "Q8_0"))
    with pytest.raises(UnsupportedError, match="is Q8_0 already; .*--requantize"):
        list(quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0"))
    assert not (tmp_path / "q4.gguf").exists()
    list(quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0", requantize=True))
    assert types_of(tmp_path / "q4.gguf")["blk.3.attn_q.weight"] == "Q4_0"


def test_existing_output(model, tmp_path):
    (tmp_path / "out.gguf").write_text("precious")
    with pytest.raises(FileError, match="exists already; --force"):
        list(quantize(model, tmp_path / "out.gguf", "Q4_0"))
    assert (tmp_path / "out.gguf").read_text() == "precious"


def test_source_is_target(tmp_path):
    model = write_model(tmp_path / "model.gguf", n_layer=1)
    before = model.read_bytes()
    with pytest.raises(ArgumentError, match="source and target at once"):
        list(quantize(model, model, "Q4_0", force=True))
    assert model.read_bytes() == before


def test_an_iterator_that_is_dropped_leaves_nothing(model, tmp_path):
    work = quantize(model, tmp_path / "out.gguf", "Q4_0")
    next(work)
    assert (tmp_path / "out.gguf.part").exists()
    work.close()
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite(tmp_path):
    def edit(name, values):
        if name == "blk.1.ffn_up":
            values[5, 6] = np.nan

    model = write_model(tmp_path / "model.gguf", n_layer=2, edit=edit)
    with pytest.raises(NumericError, match=r"tensor 'blk.1.ffn_up.weight': .*not finite"):
        list(quantize(model, tmp_path / "out.gguf", "Q4_K_M"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_file_that_is_no_model(tmp_path):
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(FormatError):
        list(quantize(tmp_path / "text.gguf", tmp_path / "out.gguf", "Q4_0"))


# ---- importance matrices ----


@pytest.fixture(scope="module")
def matrix(model):
    tokens = np.random.default_rng(1).integers(3, 259, 200).tolist()
    with Model.open(model) as opened:
        return collect(opened, tokens, dataset="noise", chunk=64)


def test_what_is_collected(model, matrix):
    """All matrices of all layers; the sums of the first are those of the normalized embeddings."""
    assert matrix.n_chunks == 200 // 63
    assert len(matrix.entries) == 16 * 7
    assert {entry.n_tokens for entry in matrix.entries.values()} == {3 * 64}
    tokens = np.random.default_rng(1).integers(3, 259, 200).tolist()
    values = {t.name: t.data for t in gguf.GGUFReader(model).tensors}
    fed = [token for i in range(3) for token in [1, *tokens[63 * i : 63 * i + 63]]]
    x = values["token_embd.weight"][fed].astype(np.float64)
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * values["blk.0.attn_norm.weight"]
    for part in "attn_q", "attn_k", "attn_v":
        np.testing.assert_allclose(matrix.entries[f"blk.0.{part}.weight"].sums, (x**2).sum(axis=0), rtol=1e-4)


def test_the_file(matrix, tmp_path):
    matrix.save(tmp_path / "m.imatrix")
    again = ImportanceMatrix.open(tmp_path / "m.imatrix")
    assert (again.n_chunks, again.chunk_size, again.dataset) == (3, 64, "noise")
    assert again.entries.keys() == matrix.entries.keys()
    for name, entry in matrix.entries.items():
        assert again.entries[name].n_tokens == entry.n_tokens
        np.testing.assert_allclose(again.entries[name].sums, entry.sums, rtol=1e-6)
    reader = gguf.GGUFReader(tmp_path / "m.imatrix")  # as llama.cpp describes it
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_size"].contents() == 64
    shapes = {t.name: t.shape.tolist() for t in reader.tensors}
    assert shapes["blk.0.attn_q.weight.in_sum2"] == [WIDTH, 1]
    assert shapes["blk.0.attn_q.weight.counts"] == [1, 1]
    with pytest.raises(FileError, match="exists already"):
        matrix.save(tmp_path / "m.imatrix")


def test_it_is_used(model, matrix, tmp_path):
    """The weighted error of a matrix shrinks where activations differ in size."""
    name = "blk.2.ffn_down.weight"
    importance = matrix.columns(GGUFFile.open(model).tensors)[name]
    for label, used in ("plain", None), ("weighted", matrix):
        list(quantize(model, tmp_path / f"{label}.gguf", "Q4_K_S", imatrix=used))
    exact = next(t for t in gguf.GGUFReader(model).tensors if t.name == name).data.astype(np.float64)
    errors = {}
    for label in "plain", "weighted":
        tensor = next(t for t in gguf.GGUFReader(tmp_path / f"{label}.gguf").tensors if t.name == name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        errors[label] = (importance * (values - exact) ** 2).sum()
    assert errors["weighted"] < 0.97 * errors["plain"]
    with GGUFFile.open(tmp_path / "weighted.gguf") as file:
        assert file.metadata["quantize.imatrix.entries_count"] == 112
        assert file.metadata["quantize.imatrix.dataset"] == "noise"


def test_matrix_of_another_model(matrix, tmp_path):
    other = write_model(tmp_path / "other.gguf", n_layer=2, width=256)
    with pytest.raises(FormatError, match="columns, the model's has 256"):
        list(quantize(other, tmp_path / "out.gguf", "Q4_0", imatrix=matrix))
    assert not (tmp_path / "out.gguf").exists()


def test_file_that_is_no_matrix(model):
    with pytest.raises(FormatError, match="is not an importance matrix"):
        ImportanceMatrix.open(model)


def test_text_that_is_too_short(model):
    with Model.open(model) as opened, pytest.raises(ArgumentError, match="10 tokens, expected at least a chunk of 64"):
        collect(opened, [5] * 10, chunk=64)


# ---- the commands ----


def command(*arguments) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "pykvq", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True)


def test_commands(model, tmp_path):
    (tmp_path / "text").write_text("some text, " * 40)
    done = command("imatrix", model, "--text", tmp_path / "text", "-o", tmp_path / "m.imatrix", "--chunk", 64)
    assert done.returncode == 0, done.stderr
    assert "112 matrices over 9 chunks of 64, perplexity" in done.stdout  # 603 bytes, 63 and BOS in each
    done = command("quantize", model, "q4_k_m", "-o", tmp_path / "out.gguf", "--imatrix", tmp_path / "m.imatrix")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(types_of(model)) + 1
    assert any("blk.3.attn_q.weight" in line and "F16 -> Q4_K" in line and "error" in line for line in lines)
    done = command("quantize", model, "Q2_K", "-o", tmp_path / "out.gguf", "--force", "--json")
    record = json.loads(done.stdout)
    assert record["n_bytes"] < 0.3 * model.stat().st_size
    assert record["tensors"][0]["error"]["relative"] > 0
    done = command("quantize", model, "Q2_K", "-o", tmp_path / "out.gguf")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "exists already" in done.stderr


def test_matrix_that_exists_is_refused_at_once(model, tmp_path):
    """Not after the text has run."""
    (tmp_path / "text").write_text("short")  # would be the next thing to fail
    (tmp_path / "m.imatrix").write_text("precious")
    done = command("imatrix", model, "--text", tmp_path / "text", "-o", tmp_path / "m.imatrix")
    assert (done.returncode, done.stderr) == (1, f"pykvq: {tmp_path}/m.imatrix: exists already; --force replaces it\n")


def test_full_disk(model, tmp_path):
    """The system refuses to let the file grow: the old file stays, the new one is not there."""
    target = tmp_path / "out.gguf"
    target.write_text("precious")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    line = [sys.executable, "-m", "pykvq", "quantize", str(model), "Q4_0", "-o", str(target), "--force"]
    done = subprocess.run(line, preexec_fn=limit, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"pykvq: {target}: cannot be written: File too large\n")
    assert target.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


# the command, in slow motion
SLOWLY = """
import sys, time
from pykvq import gguf_writer
from pykvq.cli import main
end_tensor = gguf_writer.GGUFOutput.end_tensor
gguf_writer.GGUFOutput.end_tensor = lambda self: (time.sleep(0.2), end_tensor(self))
main()
"""


@pytest.mark.parametrize("verb", ["quantize", "convert"])
def test_interrupt(verb, model, tmp_path):
    """Ctrl-C leaves the old file and no part of the new one."""
    target = tmp_path / "out.gguf"
    target.write_text("precious")
    if verb == "convert":
        checkpoint(tmp_path / "hf")
    arguments = ["convert", tmp_path / "hf"] if verb == "convert" else ["quantize", model, "Q4_0"]
    line = [sys.executable, "-c", SLOWLY, *map(str, arguments), "-o", str(target), "--force"]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "out.gguf.part").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert target.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.gguf"]
