"""PYKVQ_CUDA=AUTO with a GPU (a stand-in for nvidia-smi says so) and no compiler for it: the rest is configured."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CANNOT_RUN = "exit 1"
CANNOT_COMPILE = """case "$*" in
*--version*) echo "nvcc: NVIDIA (R) Cuda compiler driver"; exit 0;;
*) echo "nvcc fatal   : Unsupported gpu architecture 'compute_99'" >&2; exit 1;;
esac"""


def _configure(folder: Path, nvcc: str | None, *options: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    tools = folder / "tools"
    tools.mkdir()
    scripts = {"nvidia-smi": "echo 9.9", **({"nvcc": nvcc} if nvcc else {})}
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "CUDA_PATH")}
    environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
    if nvcc:
        environment["CUDACXX"] = str(tools / "nvcc")
    command = ["cmake", "-S", ROOT, "-B", folder / "build", "-DPYKVQ_PYTHON=OFF", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("nvcc", [CANNOT_RUN, CANNOT_COMPILE], ids=["cannot run", "cannot compile"])
def test_auto_builds_without_a_compiler_that_does_not_work(tmp_path: Path, nvcc: str) -> None:
    done = _configure(tmp_path, nvcc)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CUDA backend: not built, no CUDA compiler (nvcc) that works was found" in done.stdout


def test_a_compiler_that_does_not_know_the_gpu(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    done = _configure(tmp_path, None)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cannot compile for sm_99" in done.stdout


def test_on_says_what_is_missing(tmp_path: Path) -> None:
    done = _configure(tmp_path, CANNOT_RUN, "-DPYKVQ_CUDA=ON")
    assert done.returncode != 0
    assert "PYKVQ_CUDA=ON, but no CUDA compiler (nvcc) that works was found" in " ".join(done.stderr.split())
