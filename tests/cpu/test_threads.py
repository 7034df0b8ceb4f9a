"""The thread team under ThreadSanitizer, with fewer and more threads than cores, and when threads cannot be had."""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "native"
SOURCES = [HERE / "threads_driver.c", *(NATIVE / f"src/base/{name}.c" for name in ("threads", "memory", "status"))]

compiler = shutil.which("cc")
pytestmark = pytest.mark.skipif(compiler is None, reason="needs a C compiler")


def build(path: Path, *options: str) -> bool:
    command = [compiler, "-std=c11", "-O1", "-g", *options, f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'src'}"]
    return (
        subprocess.run([*command, *map(str, SOURCES), "-o", str(path), "-pthread"], capture_output=True).returncode == 0
    )


@pytest.fixture(scope="module", params=["plain", "thread sanitizer"])
def driver(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("threads") / "driver"
    if request.param == "plain":
        assert build(path)
    elif not build(path, "-fsanitize=thread"):
        pytest.skip("this compiler has no ThreadSanitizer")
    return path


@pytest.mark.parametrize("n_threads", [1, 2, 3, 8])
def test_team(driver, n_threads):
    run = subprocess.run([driver, str(n_threads)], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stderr


@pytest.mark.parametrize("n_threads", [0, 5000])
def test_impossible_sizes(driver, n_threads):
    run = subprocess.run([driver, str(n_threads)], capture_output=True, text=True)
    assert run.returncode == 1
    assert f"{n_threads} asked for" in run.stdout


def test_no_memory_for_stacks_is_a_sentence(tmp_path):
    """64 MiB of address space hold a few stacks of 8 MiB: creation fails midway, and the threads that were made end."""
    assert build(tmp_path / "driver")

    def limit():
        resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, 8 << 20))
        resource.setrlimit(resource.RLIMIT_AS, (64 << 20, 64 << 20))

    run = subprocess.run([tmp_path / "driver", "50"], capture_output=True, text=True, preexec_fn=limit, timeout=60)
    assert run.returncode == 1
    assert "the system gave" in run.stdout
