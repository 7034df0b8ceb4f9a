"""SmolLM2 out of its GGUF file into a Hugging Face folder (tools/gguf_to_hf.py), and back through the commands.

The text is compared in float arithmetic (`exact` engines). By default activations are rounded to int8 before they
meet weights in blocks, and stay float before F16 ones. So logits of a Q4_1 file and of its F16 twin differ by up to 1,
as far as either program is from float on the Q4_1 file alone; where two tokens are closer, the text takes another turn.
"""

import subprocess
import sys

import numpy as np
import pytest

from pykvq import Engine, GGUFFile, Model, Sampler, generate
from pykvq.quantize import quantize
from pykvq.registry import entries

pytestmark = pytest.mark.models

PROMPTS = ["The capital of France is", "Once upon a time there was a", "def fibonacci(n):\n"]
N_TOKENS = 48


@pytest.fixture(scope="module")
def original():
    entry = entries()["smollm2"]
    if not entry.is_cached:
        pytest.skip("needs the model: pykvq pull smollm2")
    return entry.path


@pytest.fixture(scope="module")
def converted(original, request, tmp_path_factory):
    """The F16 file of the folder."""
    folder = tmp_path_factory.mktemp("round-trip")
    there_and_back(request, original, folder / "hf", folder / "model.gguf")
    return folder / "model.gguf"


def there_and_back(request, path, folder, target) -> None:
    tool = request.config.rootpath / "tools/gguf_to_hf.py"
    subprocess.run([sys.executable, tool, path, folder, "--type", "f16"], check=True)
    command = [sys.executable, "-m", "pykvq", "convert", folder, "-o", target, "--type", "f16"]
    subprocess.run(command, check=True, capture_output=True)


def texts(path, **options) -> list[str]:
    """What follows the prompts at temperature 0."""
    with Model.open(path) as model, Engine(model, ctx=128, **options) as engine:
        return ["".join(generate(engine, prompt, max_tokens=N_TOKENS, sampler=Sampler(temp=0))) for prompt in PROMPTS]


def bytes_of(path) -> dict[str, tuple[str, bytes]]:
    import gguf

    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def test_the_same_text(original, converted):
    assert texts(converted, exact=True) == texts(original, exact=True)


def test_a_file_in_f16_comes_back_as_it_was(original, converted, request, tmp_path):
    """Every bit of every tensor, so that the text is the same with any options."""
    list(quantize(original, tmp_path / "f16.gguf", "F16", requantize=True))
    there_and_back(request, tmp_path / "f16.gguf", tmp_path / "hf", tmp_path / "back.gguf")
    assert bytes_of(tmp_path / "back.gguf") == bytes_of(tmp_path / "f16.gguf") == bytes_of(converted)
    assert texts(tmp_path / "back.gguf") == texts(tmp_path / "f16.gguf")


def test_quantized(original, converted, tmp_path):
    """Back to the types it came from: the same numbers within a rounding of f16, and the same text."""
    import gguf

    with GGUFFile.open(original) as file:
        types = {tensor.name: tensor.type for tensor in file.tensors}
    list(quantize(converted, tmp_path / "q4_1.gguf", "Q4_1"))
    with GGUFFile.open(tmp_path / "q4_1.gguf") as file:
        assert {tensor.name: tensor.type for tensor in file.tensors} == types
    before = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(original).tensors}
    for tensor in gguf.GGUFReader(tmp_path / "q4_1.gguf").tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.abs(values - before[tensor.name]).max() <= 0.01 * np.abs(before[tensor.name]).max(), tensor.name
    assert texts(tmp_path / "q4_1.gguf", exact=True) == texts(original, exact=True)
