"""The machine code of the attention kernels, without a GPU: tensor cores, asynchronous copies, no spills."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
HEAD_DIM = 128


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}")
    return found


@pytest.fixture(scope="module")
def sass(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Attention for sm_90 with heads of 128 elements."""
    nvcc, cuobjdump, _ = _tool("nvcc"), _tool("cuobjdump"), _tool("nvdisasm")
    out = tmp_path_factory.mktemp("sass") / "attend.cubin"
    command = [
        nvcc,
        "-O3",
        "-std=c++17",
        "-arch=sm_90",
        "-cubin",
        f"-DKVQ_HEAD_DIM={HEAD_DIM}",
        NATIVE / "cuda/attend.cu",
    ]
    subprocess.run([*command, "-o", out], check=True)
    return subprocess.run([cuobjdump, "--dump-sass", out], check=True, capture_output=True, text=True).stdout


def _kernels(sass: str) -> list[list[str]]:
    """The opcodes of each function."""
    functions = sass.split("Function :")[1:]
    return [re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", text) for text in functions]


def test_attention_is_on_tensor_cores(sass: str) -> None:
    kernels = _kernels(sass)
    assert len(kernels) == 2
    for opcodes in kernels:
        assert sum(op.startswith("HMMA.16816.F32") for op in opcodes) > 500
        assert sum(op.startswith("LDGSTS.E.BYPASS.128") or op.startswith("LDGSTS.E.128") for op in opcodes) > 0


def test_attention_spills_nothing(sass: str) -> None:
    for opcodes in _kernels(sass):
        assert not [op for op in opcodes if op.startswith(("LDL", "STL"))]
