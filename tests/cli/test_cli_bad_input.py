"""Every wrong input ends with one sentence on standard error, the right exit code, and no traceback."""

import os
import subprocess

import gguf
import pytest
from command import COMMAND, environment, run

import pykvq

PROMPT = ("--prompt", "the", "--max-tokens", "2")


def sentence(result, code: int = 1) -> str:
    """The one line that a failed command leaves."""
    assert result.code == code, result
    assert result.out == ""
    assert "Traceback" not in result.err
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("pykvq: ")
    return lines[0]


@pytest.fixture
def broken(tiny_llama, tmp_path):
    """A function that writes a changed copy of the tiny model."""

    def write(change):
        path = tmp_path / "broken.gguf"
        path.write_bytes(change(tiny_llama.read_bytes()))
        return path

    return write


@pytest.mark.parametrize("verb", ["generate", "info", "tokenize"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"", "GGUF"),
        (lambda data: b"not a model at all, only text", "GGUF"),
        (lambda data: data[:100], ""),
        (lambda data: data[: len(data) // 2], ""),
        (lambda data: data[:4] + b"\x63" + data[5:], "version"),
    ],
    ids=["empty", "text", "head only", "half", "version"],
)
def test_corrupt_files(broken, verb, change, words):
    path = broken(change)
    arguments = {"generate": PROMPT, "info": (), "tokenize": ("the",)}[verb]
    line = sentence(run(verb, path, *arguments))
    assert str(path) in line
    assert words in line


def test_unknown_architecture(tmp_path):
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "mamba9")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    line = sentence(run("generate", path, *PROMPT))
    assert "mamba9" in line
    assert str(path) in line


def test_missing_file(tmp_path):
    assert "missing.gguf" in sentence(run("generate", tmp_path / "missing.gguf", *PROMPT))


def test_directory(tmp_path):
    assert "directory" in sentence(run("generate", tmp_path, *PROMPT)).lower()


def test_no_permission(tiny_llama, tmp_path):
    path = tmp_path / "secret.gguf"
    path.write_bytes(tiny_llama.read_bytes())
    path.chmod(0)
    if os.geteuid() != 0:
        assert "ermission" in sentence(run("generate", path, *PROMPT))
        return
    os.seteuid(65534)  # root may read everything; nobody may not even import
    try:
        with pytest.raises(pykvq.FileError, match="ermission"):
            pykvq.GGUFFile.open(path)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["smollm3", "smolm2", "nothing"])
def test_unknown_name(name, tmp_path):
    hint = "known are: smollm2" if name == "nothing" else "did you mean smollm2?"
    assert hint in sentence(run("generate", name, *PROMPT, cache=tmp_path, cwd=tmp_path))
    assert hint in sentence(run("pull", name, cache=tmp_path))


def test_no_network(tmp_path):
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    result = run("pull", "smollm2", cache=tmp_path / "cache", **offline)
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("pykvq: smollm2: the download failed, is the network reachable?")
    assert "Traceback" not in result.err
    assert os.listdir(tmp_path / "cache" / "models") == []


def test_context_longer_than_memory(tiny_llama):
    """Either the pool is refused, or (on a machine that lends memory it has not got) it runs; never a crash."""
    result = run("generate", tiny_llama, *PROMPT, "--ctx", 4_000_000_000)
    if result.code:
        sentence(result)


def test_prompt_longer_than_the_context(tiny_llama):
    line = sentence(run("generate", tiny_llama, "--prompt", "x" * 600, "--raw"))
    assert "prompt: 600 tokens do not fit the context of 512" in line
    line = sentence(run("generate", tiny_llama, "--prompt", "x" * 100, "--raw", "--ctx", "64"))
    assert "prompt: 100 tokens do not fit the context of 64" in line


def test_empty_prompt(tiny_llama, tmp_path):
    (tmp_path / "empty").touch()
    for result in (
        run("generate", tiny_llama, "--prompt", ""),
        run("generate", tiny_llama, "--file", tmp_path / "empty"),
        run("generate", tiny_llama, stdin=b""),
        run("generate", tiny_llama, stdin=b"\n"),
    ):
        assert sentence(result) == "pykvq: prompt: it is empty"


def test_invalid_utf8(tiny_llama, tmp_path):
    (tmp_path / "bytes").write_bytes(b"abc\xff")
    expected = "not UTF-8 text, byte 3 is 0xff"
    assert sentence(run("generate", tiny_llama, stdin=b"abc\xff")) == f"pykvq: standard input: {expected}"
    assert sentence(run("generate", tiny_llama, "-f", tmp_path / "bytes")) == f"pykvq: {tmp_path / 'bytes'}: {expected}"
    assert sentence(run("tokenize", tiny_llama, stdin=b"abc\xff")) == f"pykvq: standard input: {expected}"
    done = subprocess.run(
        [*map(os.fsencode, COMMAND), b"generate", os.fsencode(tiny_llama), b"-p", b"abc\xff"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        cwd="/",
    )
    assert (done.returncode, done.stderr) == (1, f"pykvq: --prompt: {expected}\n")


def test_prompt_file(tiny_llama, tmp_path):
    assert "No such file" in sentence(run("generate", tiny_llama, "-f", tmp_path / "missing"))
    assert "directory" in sentence(run("generate", tiny_llama, "-f", tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "abacus"), "abacus"),
        (("--kv", "f17"), "f17"),
        (("--temp", "-1"), "temp"),
        (("--temp", "nan"), "temp"),
        (("--top-p", "7"), "top_p"),
        (("--ctx", str(2**40)), "out of range"),
    ],
)
def test_bad_options(tiny_llama, options, words):
    assert words in sentence(run("generate", tiny_llama, *PROMPT, *options))


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate",),
        ("generate", "x", "--nonsense"),
        ("generate", "x", "--max-tokens", "many"),
        ("generate", "x", "--max-tokens", "0"),
        ("generate", "x", "--prompt", "a", "--file", "b"),
        ("generate", "x", "--prompt", "a", "--raw", "--system", "s"),
        ("generat", "x"),
    ],
)
def test_wrong_usage(arguments):
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Traceback" not in result.err


def test_debug_shows_a_traceback(tmp_path):
    result = run("info", tmp_path / "missing.gguf", "--debug")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "FileError" in result.err.splitlines()[-1]


def test_hostile_template(tmp_path):
    from conftest import write_llama

    path = write_llama(tmp_path / "hostile.gguf", template="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    assert "chat template: " in sentence(run("generate", path, *PROMPT))
    assert run("generate", path, *PROMPT, "--raw").code == 0
