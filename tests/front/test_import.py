"""`import pykvq` is quick, light, and refuses a compiled module of another ABI."""

import resource
import subprocess
import sys

HEAVY = ("torch", "numpy", "matplotlib", "huggingface_hub", "transformers", "tokenizers", "jinja2", "rich", "typer")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")


def cpu_seconds(code: str) -> float:
    """Processor time of the best of some runs: other work on the machine only ever adds to it."""
    best = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(code).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def test_import_is_quick():
    assert cpu_seconds("import pykvq") < 0.3


def test_help_is_quick():
    assert cpu_seconds("import pykvq.cli as c; c.app(['--help'])") < 0.4


def test_import_loads_nothing_heavy():
    result = run(f"import pykvq, sys; print([m for m in {HEAVY} if m in sys.modules])")
    assert result.stdout.strip() == "[]", result.stderr


def test_everything_in_all_exists():
    result = run("import pykvq; [getattr(pykvq, name) for name in pykvq.__all__]")
    assert result.returncode == 0, result.stderr


def test_another_abi_is_refused():
    fake = "import sys, types; m = types.ModuleType('pykvq._native'); m.ffi = None; m.lib = types.SimpleNamespace("
    result = run(fake + "pykvq_abi=lambda: 999); sys.modules[m.__name__] = m; import pykvq")
    assert result.returncode == 1
    assert "has ABI 999" in result.stderr.splitlines()[-1]
