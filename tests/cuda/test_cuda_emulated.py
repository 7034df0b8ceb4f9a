"""The CUDA backend on an emulated GPU: encoded bytes, attention against float64, logits against the CPU.

The same checks as on a GPU (test_cuda_gpu.py). What an emulation cannot show: races between blocks, speed.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

EMULATED = Path(__file__).parent / "emulated"


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The check program beside the emulated library."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake, or no C++ compiler")
    build = tmp_path_factory.mktemp("emulated")
    subprocess.run(["cmake", "-S", EMULATED, "-B", build, "-DCMAKE_BUILD_TYPE=None"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build, "-j2"], check=True, capture_output=True)
    return build / "kvq_cuda_check"


def _run(check: Path, *arguments: str | Path) -> str:
    done = subprocess.run([check, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("head_dim", [16, 64, 80])
def test_encoded_bytes_and_attention(check: Path, head_dim: int) -> None:
    assert " 0 failed" in _run(check, "kv", str(head_dim))


@pytest.mark.parametrize("kv", ["f16", "q8_0", "kivi2", "turbo3", "nvfp4"])
def test_logits_are_those_of_the_cpu(check: Path, tiny_llama: Path, kv: str) -> None:
    assert _run(check, "compare", tiny_llama, kv).startswith("ok")
