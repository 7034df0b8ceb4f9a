"""Includes and imports point down only; a codec's name stays in its own files and the table."""

from pathlib import Path

import pytest
from layers import codec_name_faults, kv_type_names, native_faults, python_faults

ROOT = Path(__file__).parents[2]


def test_native_includes_point_down():
    assert list(native_faults(ROOT)) == []


def test_python_imports_point_down():
    assert list(python_faults(ROOT)) == []


def test_codec_names_stay_in_their_files():
    assert list(codec_name_faults(ROOT, kv_type_names(ROOT))) == []


def test_kv_type_names_are_found():
    import pykvq

    assert {"f16", *kv_type_names(ROOT)} == {kv.name for kv in pykvq.kv_types()}


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("native/src/base/a.c", '#include "engine/engine.h"\n', "native/src/base/a.c: includes engine/engine.h"),
        ("native/src/model/a.h", '  # include "cpu/isa.h"', "native/src/model/a.h: includes cpu/isa.h"),
        ("pykvq/sampling.py", "import torch.nn", "pykvq/sampling.py: imports torch.nn"),
        ("pykvq/model.py", "def f():\n    from .engine import Engine", "pykvq/model.py: imports pykvq.engine"),
        ("pykvq/model.py", "from . import cli", "pykvq/model.py: imports pykvq.cli"),
        ("pykvq/gguf.py", "from ._native import lib", "pykvq/gguf.py: imports pykvq._native"),
        ("pykvq/engine.py", "import pykvq.ref", "pykvq/engine.py: imports pykvq.ref"),
        ("pykvq/stray.py", "", "pykvq/stray.py: has no line in layers.py"),
        ("pykvq/cli/info.py", 'kv = "zip9"', "pykvq/cli/info.py: names zip9"),
        ("native/src/engine/a.c", 'strcmp(s, "zip9")', "native/src/engine/a.c: names zip9"),
    ],
)
def test_faults_are_found(tmp_path, file, text, fault):
    for folder in ("pykvq/cli", "pykvq/ref", "native/src"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    faults = [*native_faults(tmp_path), *python_faults(tmp_path), *codec_name_faults(tmp_path, ["zip9"])]
    assert faults == [fault]


def test_what_is_allowed_is_no_fault(tmp_path):
    for file, text in {
        "native/src/model/a.c": '#include "base/status.h"\n#include "pykvq.h"\n#include <math.h>',
        "native/src/cpu/kernels/zip.c": 'const char *name = "zip9";',
        "native/src/engine/a.c": '/* "zip9" */',
        "pykvq/engine.py": "from typing import TYPE_CHECKING\nfrom .model import Model\nimport numpy\n"
        "if TYPE_CHECKING:\n    from .generate import Generation\n",
        "pykvq/gguf.py": '"""zip9 in words"""\nif TYPE_CHECKING:\n    from .model import Model',
        "pykvq/ref/zip.py": 'name = "zip9"\nimport numpy',
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    faults = [*native_faults(tmp_path), *python_faults(tmp_path), *codec_name_faults(tmp_path, ["zip9"])]
    assert faults == []
