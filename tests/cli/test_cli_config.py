"""The file of defaults: what it sets, who wins, and what is wrong with it, by line."""

import json

import pytest
from command import run
from typer.testing import CliRunner

import pykvq
from pykvq.cli import app


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes the file; its path."""
    path = tmp_path / "config.toml"
    monkeypatch.setenv("PYKVQ_CONFIG", str(path))

    def write(text):
        path.write_text(text)
        return path

    return write


def pykvq_in_process(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="pykvq")


def test_for_all_verbs_and_for_one_and_flags_win(config, tiny_llama):
    config('kv = "kivi2"\nctx = 128\n\n[info]\nctx = 256\nkv-tail = 128\n')

    def cache(*options):
        result = pykvq_in_process("info", tiny_llama, "--json", *options)
        assert result.exit_code == 0, result.output
        return json.loads(result.output)["cache"]

    assert cache()["ctx"] == 256
    assert 4 < cache()["bits_per_element"] < 16
    assert cache("--ctx", 64)["ctx"] == 64
    assert cache("--kv", "f16")["bits_per_element"] == 16
    result = pykvq_in_process("plan", tiny_llama, "--json")
    plans = [json.loads(line) for line in result.output.splitlines()]
    assert {plan["n_ctx"] for plan in plans} == {128}
    assert len(plans) == len(pykvq.kv_types())  # what compares goes on comparing all


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("threads = 2\n\ntmp = 1\n", "3: tmp: no such flag; did you mean temp?"),
        ('[chat]\n\ntemp = "hot"\n', "3: [chat] temp: 'hot': "),
        ("[chat]\nstop = ['x']\n", "2: [chat] stop: no such flag; did you mean top-p?"),
        ("max-tokens = 0", "1: max-tokens: 0: "),
        ("top_k = 2.5", "1: top_k: 2.5: "),
        ("# verbs\n[chta]\ntemp = 1\n", "2: chta: no such verb; did you mean chat?"),
        ("temp = true", "1: temp: True, expected a value"),
        ("[generate]\nignore-eos = 1\n", "2: [generate] ignore-eos: 1, expected true or false"),
        ("[generate]\nstop = 'x'\n", "2: [generate] stop: 'x', expected a list"),
        ("debug = true", "1: debug: no such flag"),
        ("threads = ", " Invalid value"),
    ],
)
def test_what_is_wrong_is_named_by_line_whatever_the_verb(config, text, sentence):
    path = config(text)
    error = pykvq_in_process("models").exception
    assert isinstance(error, pykvq.FormatError)
    assert str(error).startswith(f"{path}:{sentence}")
    doctor = json.loads(pykvq_in_process("doctor", "--json").output)
    assert doctor["config"]["state"] == "bad"
    assert doctor["config"]["text"] == str(error)


def test_a_value_that_only_the_library_can_judge(config, tiny_llama):
    path = config('kv = "kivi9"')
    result = run("generate", tiny_llama, "-p", "x", PYKVQ_CONFIG=str(path))
    assert result.code == 1
    assert result.err == (
        f"pykvq: KV type 'kivi9': unknown, did you mean 'kivi4'? (pykvq kv lists all) ({path} sets kv)\n"
    )


def test_where_the_file_is(tmp_path, monkeypatch):
    monkeypatch.delenv("PYKVQ_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found = json.loads(pykvq_in_process("doctor", "--json").output)["config"]
    assert (found["path"], found["exists"]) == (str(tmp_path / "pykvq" / "config.toml"), False)
    monkeypatch.setenv("PYKVQ_CONFIG", str(tmp_path / "missing"))
    assert isinstance(pykvq_in_process("models").exception, pykvq.FileError)
    (tmp_path / "binary").write_bytes(b"\xff")
    monkeypatch.setenv("PYKVQ_CONFIG", str(tmp_path / "binary"))
    assert "not UTF-8" in str(pykvq_in_process("models").exception)


# ---- doctor ----


def test_doctor(tmp_path):
    result = run("doctor", "--json", cache=tmp_path)
    found = json.loads(result.out)
    assert result.code == 0
    assert found["usable"] is True
    assert found["pykvq"]["version"] == pykvq.__version__
    assert found["cpu"]["isa"] in ("avx512", "avx2", "neon", "scalar")
    assert 1 <= found["cpu"]["n_threads"] <= found["cpu"]["n_cpus"]
    assert found["memory"]["n_bytes"] >= found["memory"]["n_available_bytes"] > 0
    assert found["cuda"]["state"] in ("good", "missing")
    assert found["cuda"]["text"]
    assert found["models"]["folder"] == str(tmp_path / "models")
    shown = run("doctor", cache=tmp_path)
    assert shown.code == 0
    for words in (f"ok  pykvq    {pykvq.__version__}", "no models yet", found["cpu"]["isa"]):
        assert words in shown.out


def test_doctor_says_why_there_is_no_cuda(monkeypatch):
    from pykvq import device

    for sentence in ("no NVIDIA driver on this machine", "the driver is for CUDA 11.8, expected 12.4 or later"):
        monkeypatch.setattr(device, "device_problem", lambda name, why=sentence: f"device 'cuda': {why}")
        monkeypatch.setattr("pathlib.Path.exists", lambda path: True)
        found = json.loads(pykvq_in_process("doctor", "--json").output)
        assert found["cuda"]["text"].startswith(sentence)
        assert found["usable"] is True
        monkeypatch.undo()


def test_device_check():
    from pykvq.device import cpu_isa, device_problem, n_cores

    assert cpu_isa()
    assert n_cores() >= 1
    assert device_problem("cpu") is None
    assert device_problem("abacus") == "device 'abacus': expected cpu, cuda or auto"
