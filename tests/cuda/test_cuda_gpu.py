"""The CUDA backend on a GPU: encoded bytes, attention against float64, logits against the CPU, through kvq_cuda_check.

cmake -S . -B build -DPYKVQ_CUDA=ON -DPYKVQ_PYTHON=OFF && cmake --build build --target kvq_cuda_check
"""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.cuda


def _run(*arguments: str | Path) -> str:
    built = sorted(ROOT.glob("build*/native/cuda/kvq_cuda_check"))
    if not built:
        pytest.skip("kvq_cuda_check is not built")
    done = subprocess.run([built[-1], *arguments], capture_output=True, text=True, timeout=600)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_encoded_bytes_and_attention() -> None:
    assert " 0 failed" in _run("kv")


def test_products_with_weights() -> None:
    assert " 0 failed" in _run("product")


@pytest.mark.parametrize("kv", ["f16", "q8_0", "q4_0", "kivi2", "kvarn3"])
def test_logits_are_those_of_the_cpu(tiny_llama: Path, kv: str) -> None:
    assert _run("compare", tiny_llama, kv).startswith("ok")
