"""The CUDA backend on an emulated GPU: encoded bytes, attention against float64, logits against the CPU.

The same checks as on a GPU (test_cuda_gpu.py, test_cuda_engine.py), and GPUs that fail. What an emulation cannot show:
races between blocks, speed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pykvq
from pykvq import _native  # pyright: ignore[reportAttributeAccessIssue]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WITHOUT = ["q4_0", "kivi", "turbo2", "turbo4", "kvarn", "tier3", "fp8"]  # KV types that are like others
RunEmulated = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def emulated_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the emulated library and the check program."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake, or no C++ compiler")
    build = tmp_path_factory.mktemp("emulated")
    subprocess.run(
        ["cmake", "-S", HERE / "emulated", "-B", build, "-DCMAKE_BUILD_TYPE=None"], check=True, capture_output=True
    )
    subprocess.run(["cmake", "--build", build, "-j2"], check=True, capture_output=True)
    return build


@pytest.fixture(scope="session")
def run_emulated(emulated_build: Path, tmp_path_factory: pytest.TempPathFactory) -> RunEmulated:
    """Run Python with the package whose "cuda" is the emulated GPU; keywords set what it is like (see emulator.cpp)."""
    folder = tmp_path_factory.mktemp("emulated_package")
    (folder / "pykvq").mkdir()
    for source in (Path(pykvq.__file__).parent, Path(_native.__file__).parent):  # of an editable install, two folders
        for path in source.iterdir():
            if path.name not in ("__pycache__", "libpykvq_cuda.so") and not (folder / "pykvq" / path.name).exists():
                (folder / "pykvq" / path.name).symlink_to(path)
    (folder / "pykvq" / "libpykvq_cuda.so").symlink_to(emulated_build / "libpykvq_cuda.so")

    def run(*arguments: str | Path, **gpu: object) -> subprocess.CompletedProcess[str]:
        settings = {f"EMULATED_{name.upper()}": str(value) for name, value in gpu.items()}
        paths = {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(emulated_build / "cublas")}
        environment = {**os.environ, **settings, **paths}
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=folder, env=environment)

    return run


def _run(folder: Path, *arguments: str | Path, cublas: bool = True) -> str:
    """What it prints; with a stand-in for cuBLASLt or without."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder / "cublas") if cublas else ""}
    command = [folder / "kvq_cuda_check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("head_dim", [16, 64, 80])
def test_encoded_bytes_and_attention(emulated_build: Path, head_dim: int) -> None:
    assert " 0 failed" in _run(emulated_build, "kv", str(head_dim))


@pytest.mark.parametrize("cublas", [True, False])
def test_products_with_weights(emulated_build: Path, cublas: bool) -> None:
    assert " 0 failed" in _run(emulated_build, "product", cublas=cublas)


@pytest.mark.parametrize("kv", ["f16", "q8_0", "kivi2", "turbo3", "turbo2.5", "nvfp4"])
def test_logits_are_those_of_the_cpu(emulated_build: Path, tiny_llama: Path, kv: str) -> None:
    assert _run(emulated_build, "compare", tiny_llama, kv).startswith("ok")


def test_logits_without_cublas(emulated_build: Path, tiny_llama: Path) -> None:
    assert _run(emulated_build, "compare", tiny_llama, "kivi2", cublas=False).startswith("ok")


def test_engines(run_emulated: RunEmulated) -> None:
    """What pytest -m cuda runs on a GPU."""
    few = "(llama or windows or doctor or eval or refused or planned) and not " + " and not ".join(WITHOUT)
    options = [
        "-m",
        "cuda",
        "-k",
        few,
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        ROOT / "pyproject.toml",
        "--rootdir",
        ROOT,
    ]
    done = run_emulated("-m", "pytest", *options, HERE / "test_cuda_engine.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "device 'cuda'" not in done.stdout  # skips say this


ENGINE = """
import sys, pykvq
model = pykvq.Model.open(sys.argv[1])
def engine(**options):
    return pykvq.Engine(model, device="cuda", **options)
"""


def _sentence(run_emulated: RunEmulated, model: Path, code: str, **gpu: object) -> str:
    """What the code prints; with an error, its sentence."""
    done = run_emulated(
        "-c", ENGINE + f"try:\n    {code}\nexcept pykvq.PykvqError as e: print(type(e).__name__, e)", model, **gpu
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_gpu_that_is_too_small(run_emulated: RunEmulated, tiny_llama: Path) -> None:
    said = _sentence(run_emulated, tiny_llama, "engine(ctx=2000000, batch=64)", free=300 << 20)
    found = re.match(
        r"OutOfMemoryError engine: needs (\d+) MiB of GPU memory \(weights 1, KV cache of 1 x 2000000 tokens (\d+), "
        r"scratch (\d+)\), 300 of 300 MiB are free; the longest context that fits has (\d+) tokens; "
        r"with (\w+) (\d+); with (\w+) (\d+); with (\w+) (\d+)$",
        said,
    )
    assert found, said
    total, cache, scratch, n_f16, q8_0, n_q8_0, _, n_second, _, n_third = found.groups()
    assert abs(int(total) - int(cache) - int(scratch) - 1) <= 1
    assert q8_0 == "q8_0"
    assert 64 <= int(n_f16) < int(n_q8_0) < int(n_second) < int(n_third) <= 2000000
    for kv, n_ctx in (("f16", int(n_f16)), ("q8_0", int(n_q8_0))):  # what it says is so
        assert _sentence(run_emulated, tiny_llama, f"engine(ctx={n_ctx}, kv='{kv}', batch=64)", free=300 << 20) == ""
        more = _sentence(run_emulated, tiny_llama, f"engine(ctx={n_ctx + 64}, kv='{kv}', batch=64)", free=300 << 20)
        assert "OutOfMemoryError" in more


def test_not_even_the_weights_fit(run_emulated: RunEmulated, tiny_llama: Path) -> None:
    said = _sentence(run_emulated, tiny_llama, "engine(ctx=256)", free=1 << 20)
    assert said.rstrip().endswith("1 of 1 MiB are free; no context fits"), said


def test_a_plan_is_what_an_engine_takes(run_emulated: RunEmulated, tiny_llama: Path) -> None:
    """An engine fits into exactly what its plan says."""
    code = "print(engine(ctx=1024, kv='kivi4').plan.n_total_bytes)"
    n_bytes = int(_sentence(run_emulated, tiny_llama, code))
    assert int(_sentence(run_emulated, tiny_llama, code, free=n_bytes)) == n_bytes
    assert "OutOfMemoryError" in _sentence(run_emulated, tiny_llama, code, free=n_bytes - 1)


def test_another_process_takes_the_memory(run_emulated: RunEmulated, tiny_llama: Path) -> None:
    """Between the look at what is free and any of the allocations: the sentence is that of the look."""
    for at in (1, 3, 20):
        said = _sentence(run_emulated, tiny_llama, "engine(ctx=256)", taken_at=at, free=300 << 20)
        assert re.match(r"OutOfMemoryError engine: needs 1\d\d MiB .*, \d+ of 300 MiB are free; ", said), said


NO_ROOM = """
import pykvq, sys
model = pykvq.Model.open(sys.argv[1])
def tokens(device):
    with pykvq.Engine(model, device=device, ctx=256) as engine, engine.sequence() as sequence:
        for token in range(5):
            sequence.push([token])
            try:
                engine.step([sequence])
            except pykvq.OutOfMemoryError as error:
                print(str(error).partition(",")[0])
                engine.step([sequence])
            yield int(sequence.logits()[-1].argmax())
print([*tokens("cuda")] == [*tokens("cpu")])
"""


def test_a_step_that_finds_no_memory_can_be_repeated(run_emulated: RunEmulated, tiny_llama: Path) -> None:
    done = run_emulated("-c", NO_ROOM, tiny_llama, no_room_at=3)
    assert done.stdout.splitlines() == ["GPU: out of GPU memory", "True"], done.stdout + done.stderr


LOST = """
import numpy as np
import pykvq, sys
model = pykvq.Model.open(sys.argv[1])
engine = pykvq.Engine(model, device="cuda", ctx=256, seqs=2)
sequence, other = engine.sequence(), engine.sequence()
def attempt(what, *arguments):
    try:
        what(*arguments)
        print("ok")
    except pykvq.PykvqError as error:
        print(type(error).__name__, error)
def step():
    sequence.push([1])
    engine.step([sequence])
for _ in range(4):
    attempt(step)
attempt(sequence.logits)
attempt(sequence.save, "lost.kv")
attempt(other.close)
attempt(lambda: pykvq.Engine(model, device="cuda", ctx=256))
attempt(engine.close)
with pykvq.Engine(model, ctx=256) as cpu, cpu.sequence() as alive:
    alive.push([1, 2])
    cpu.step([alive])
    print(np.isfinite(alive.logits()).all())
"""


def test_a_gpu_that_is_lost(run_emulated: RunEmulated, tiny_llama: Path) -> None:
    """The engine says so from then on; the process goes on."""
    done = run_emulated("-c", LOST, tiny_llama, lost_at=3)
    assert done.returncode == 0, done.stdout + done.stderr
    dead = "DeviceError engine: its device failed earlier; make a new engine"
    assert done.stdout.splitlines() == [
        "ok",
        "ok",
        "DeviceError GPU: unspecified launch failure",
        dead,
        dead,
        dead,
        "ok",
        "DeviceError device 'cuda': unspecified launch failure; to use the GPU again, start a new process",
        "ok",
        "True",
    ], done.stdout


@pytest.mark.parametrize(
    ("gpu", "sentence"),
    [
        ({"driver": 0}, "device 'cuda': no NVIDIA driver on this machine"),
        ({"driver": 12040}, "device 'cuda': the driver is for CUDA 12.4, expected 13.0 or later"),
        ({"capability": 75}, "emulated GPU has compute capability 7.5, which this build has no kernels for"),
        ({"full": 1}, "device 'cuda': other processes hold its memory, there is no room to start"),
        ({"busy": 1}, "the GPU is busy or unavailable: another process has it for itself"),
    ],
)
def test_gpus_that_cannot_be_used(run_emulated: RunEmulated, tiny_llama: Path, gpu: dict, sentence: str) -> None:
    said = _sentence(run_emulated, tiny_llama, "engine(ctx=64)", **gpu)
    assert said.startswith("OutOfMemoryError" if "full" in gpu else "UnsupportedError")
    assert sentence in said
    done = run_emulated("-m", "pykvq", "doctor", "--json", **gpu)
    assert done.returncode == 0
    assert sentence in json.loads(done.stdout)["cuda"]["problem"]
