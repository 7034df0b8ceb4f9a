"""Choosing a device, on machines with and without a GPU."""

import shutil
import subprocess
from pathlib import Path

import pytest

import pykvq
from pykvq.device import load_cublas


def test_unknown_device(tiny_llama: Path) -> None:
    with pykvq.Model.open(tiny_llama) as model, pytest.raises(pykvq.PykvqError, match="expected cpu, cuda or auto"):
        pykvq.Engine(model, device="gpu")


def test_cuda_runs_or_says_why_not(tiny_llama: Path) -> None:
    with pykvq.Model.open(tiny_llama) as model:
        try:
            engine = pykvq.Engine(model, device="cuda")
        except pykvq.UnsupportedError as error:
            assert "cuda" in str(error)
        else:
            engine.close()


def test_auto_always_runs(tiny_llama: Path) -> None:
    with pykvq.Model.open(tiny_llama) as model, pykvq.Engine(model, device="auto") as engine:
        assert engine.plan.n_total_bytes > 0


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_cublas_is_found_in_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "nvidia" / "cu13" / "lib" / "libcublasLt.so.13"
    library.parent.mkdir(parents=True)
    (tmp_path / "empty.c").touch()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "empty.c"], check=True)
    about = tmp_path / "nvidia_cublas-13.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-cublas\nVersion: 13.0\n")
    (about / "RECORD").write_text("nvidia/cu13/lib/libcublasLt.so.13,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_cublas.__wrapped__() == str(library)
