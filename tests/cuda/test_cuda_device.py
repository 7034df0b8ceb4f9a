"""Choosing a device, on machines with and without a GPU."""

from pathlib import Path

import pytest

import pykvq


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
