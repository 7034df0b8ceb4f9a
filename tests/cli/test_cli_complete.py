"""What the shell offers after Tab, and the help of every verb."""

import json
import os
import shlex
import subprocess

import pytest
from command import COMMAND, environment
from typer.main import get_command
from typer.testing import CliRunner

import pykvq
from pykvq.cli import app, complete

GROUP = get_command(app)
VERBS = GROUP.commands


def words(found):
    return [word for word, _ in found]


def test_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("small.gguf", "sub/big.gguf", "notes.txt", ".hidden.gguf"):
        (tmp_path / name).touch()
    assert words(complete.models("")) == ["smollm2", "small.gguf", "sub/"]
    assert words(complete.models("sm")) == ["smollm2", "small.gguf"]
    assert words(complete.models("sub/")) == ["sub/big.gguf"]
    assert words(complete.models(f"{tmp_path}/su")) == [f"{tmp_path}/sub/"]
    assert words(complete.models("missing/x")) == []
    assert words(complete.names("smo")) == ["smollm2"]


def test_kv_types():
    names = [kv.name for kv in pykvq.kv_types()]
    assert words(complete.kv_types("")) == names
    assert words(complete.kv_types("kivi2")) == [name for name in names if name.startswith("kivi2")]
    assert words(complete.kv_types("f16/tier")) == ["f16/tier3", "f16/tier2"]
    assert words(complete.kv_type_lists("f16,q8_0/tier2,tier")) == ["f16,q8_0/tier2,tier3", "f16,q8_0/tier2,tier2"]
    assert words(complete.devices("c")) == ["cpu", "cuda"]
    assert "chatml" in words(complete.templates("chat"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(shell):
    """What `--show-completion` prints is a script of that shell, which asks for the words like this."""
    line = "pykvq chat smollm2 --kv tier"
    variables = {
        "bash": {"_PYKVQ_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": "4"},
        "zsh": {"_PYKVQ_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line},
        "fish": {
            "_PYKVQ_COMPLETE": "complete_fish",
            "_TYPER_COMPLETE_ARGS": line,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        },
    }[shell]
    done = subprocess.run(
        COMMAND, env=environment() | variables, capture_output=True, text=True, check=False, cwd="/", timeout=60
    )
    assert "tier2" in done.stdout
    assert "tier3" in done.stdout
    assert done.stderr == ""


def test_bash_completes(tmp_path):
    """A real bash, with the script that --show-completion prints, completes a real line."""
    launcher = tmp_path / "pykvq"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    launcher.chmod(0o755)
    script = f"""
        PATH={tmp_path}:$PATH
        eval "$(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 pykvq --show-completion bash)"
        COMP_WORDS=(pykvq generate smollm2 --kv kvarn) COMP_CWORD=4
        $(complete -p pykvq | sed 's/.*-F \\([^ ]*\\).*/\\1/') pykvq
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script], env=environment(), capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.stdout.split() == ["kvarn4", "kvarn3", "kvarn2"], done


# ---- help ----


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples_that_parse(verb):
    shown = CliRunner().invoke(app, [verb, "--help"], prog_name="pykvq", env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert "Examples" in shown
    epilog = VERBS[verb].epilog.split("\n\n")
    commands = [line.partition("  [dim]#")[0].replace("\\[", "[") for line in epilog[1:]]
    assert commands
    for command in commands:
        assert command in " ".join(shown.split())
        _, of, *arguments = shlex.split(command.rpartition("| ")[2])
        VERBS[of].make_context(of, arguments)


def test_same_flags_same_words():
    """A flag that several verbs have says the same in each, and takes the same kind of value."""
    known = {}
    for verb, command in VERBS.items():
        for param in command.params:
            if param.param_type_name == "option" and param.name in ("json", "threads", "device", "debug", "force"):
                kind = (tuple(param.opts), param.help)
                if verb != "bench" or param.name != "device":  # which takes a list of devices
                    assert known.setdefault(param.name, kind) == kind, verb
    assert [verb for verb in VERBS if "json" not in {param.name for param in VERBS[verb].params}] == ["chat"]


def test_help_is_quick(tmp_path):
    """Below the bar of 0.4 s; the processor's time, which other work on the machine does not change."""
    begin = os.times()
    subprocess.run([*COMMAND, "--help"], env=environment(), capture_output=True, check=True, cwd="/")
    end = os.times()
    seconds = end.children_user - begin.children_user + end.children_system - begin.children_system
    assert seconds < 0.4


def test_help_imports_nothing_heavy():
    heavy = ["numpy", "jinja2", "prompt_toolkit", "tokenizers"]
    code = f"import json, sys, pykvq.cli; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert json.loads(done.stdout) == []
