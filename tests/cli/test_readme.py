"""The README's first command and its Python example, on the real model. Needs the network once."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import run

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture(scope="module")
def smollm2() -> str:
    """The path of the model in the user's cache."""
    result = run("pull", "smollm2")
    if "is the network reachable" in result.err:
        pytest.skip(result.err.splitlines()[-1])
    assert result.code == 0, result.err
    return result.out.strip()


@pytest.mark.models
def test_first_command_of_the_readme(smollm2):
    assert 'pykvq generate smollm2 --prompt "Why is the sky blue?"' in README
    result = run("generate", "smollm2", "--prompt", "Why is the sky blue?")
    assert result.code == 0, result.err
    assert "sky" in result.out
    assert "light" in result.out
    assert "(eog)" in result.err or "(length)" in result.err


@pytest.mark.models
def test_python_example_of_the_readme(smollm2):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("(1, 49152)\n")


@pytest.mark.models
def test_greedy_answers_are_known(smollm2):
    answer = run("generate", "smollm2", "--prompt", "Why is the sky blue?", "--temp", "0").out
    assert "Rayleigh scattering" in answer
    record = json.loads(
        run("generate", smollm2, "--raw", "-p", "The capital of France is", "-n", "2", "--temp", "0", "--json").out
    )
    assert record["text"].strip().startswith("Paris")


@pytest.mark.models
def test_info(smollm2):
    facts = json.loads(run("info", "smollm2", "--json").out)
    assert (facts["parameters"], facts["context"], facts["tokenizer"]) == (134_515_008, 8192, "gpt2/smollm")
    assert facts["tensor_types"] == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert facts["kv_bytes_per_token"]["f16"] == 23040


def test_config_example_of_the_readme(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "config.toml").write_text(example)
    result = run("doctor", "--json", PYKVQ_CONFIG=str(tmp_path / "config.toml"))
    assert json.loads(result.out)["config"]["state"] == "good"


def test_recordings_of_the_readme():
    """The pictures are there, and show what the scenes of tools/record_terminal.py type."""
    from xml.etree import ElementTree

    root = Path(__file__).parents[2]
    scenes = (root / "tools" / "record_terminal.py").read_text()
    for name in re.findall(r"\]\(docs/(\w+)\.svg\)", README):
        shown = "".join(ElementTree.parse(root / "docs" / f"{name}.svg").getroot().itertext())
        typed = re.search(rf'"{name}": \[\n\s+\(.(pykvq [^\n]*?).,', scenes)
        assert typed[1][:60] in shown
