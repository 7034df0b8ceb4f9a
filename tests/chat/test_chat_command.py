"""`pykvq chat` as a user runs it: through pipes, and in a real terminal with its keys sent and its screen read."""

import os
import shlex
import shutil
import subprocess
import sys
import time

import pytest


def environment(cache):
    return {**os.environ, "NO_COLOR": "1", "PYKVQ_CACHE": str(cache)}


def talk(model, lines, tmp_path, *options):
    done = subprocess.run(
        [sys.executable, "-m", "pykvq", "chat", str(model), "-n", "8", "--temp", "0", *options],
        input="\n".join(lines).encode(),
        capture_output=True,
        check=False,
        env=environment(tmp_path),
        cwd=tmp_path,
        timeout=120,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_every_line_is_answered_and_notes_stand_apart(tiny_llama, tmp_path):
    code, out, err = talk(tiny_llama, ["one", "", "/kv", '"""', "two", "lines", '"""', "/show messages"], tmp_path)
    assert code == 0
    assert out
    assert "layers" not in out
    assert "0-1      f16      f16" in err
    assert "user: one" in err
    assert "user: two\nlines" in err


def test_regen_undo_edit(tiny_llama, tmp_path):
    lines = ["one", "/regen", "/edit other", "/show messages", "/undo", "/undo", "/nonsense"]
    code, out, err = talk(tiny_llama, lines, tmp_path)
    assert code == 0
    assert out.startswith(2 * talk(tiny_llama, ["one"], tmp_path)[1])
    assert err.count("user: ") == 1
    assert "user: other" in err
    assert "taken back: other" in err
    assert "there is no question yet" in err
    assert "/nonsense: no such command" in err


def test_settings(tiny_llama, tmp_path):
    lines = [
        "/set temp 0.5",
        "/set temp hot",
        "/set tmp 1",
        "/set top_p 2",
        "/set max_tokens 0",
        "/set dry_multiplier 1",
    ]
    code, _, err = talk(tiny_llama, [*lines, "/set overflow no", "/set mirostat 2", "one", "/show"], tmp_path)
    assert code == 0
    assert "temp: 0.5" in err
    assert "temp: 'hot' is not a number" in err
    assert "did you mean temp?" in err
    assert "top_p 2, expected above 0 and at most 1" in err
    assert "max_tokens: 0, expected at least 1" in err
    assert "overflow: 'no', expected drop or stop" in err
    assert "top_p: 0.95" in err  # what was refused changed nothing
    assert "dry_multiplier: 1.0" in err


def test_saved_loaded_after_a_restart_and_read(tiny_llama, tmp_path):
    (tmp_path / "notes").write_text("from the file\n")
    (tmp_path / "binary").write_bytes(b"\xff")
    code, _, err = talk(tiny_llama, ["one", "/save kept", "/read missing", "/read binary", "/load notes"], tmp_path)
    assert code == 0
    assert "saved 2 messages to kept" in err
    assert "missing: No such file" in err
    assert "binary: not UTF-8" in err
    assert "notes: not a saved conversation" in err
    lines = ["/read notes", "two", "/stats", "/show messages", "/exit", "never"]
    code, _, err = talk(tiny_llama, lines, tmp_path, "--load", "kept")
    assert code == 0
    assert "user: one" in err
    assert "user: from the file\n\ntwo" in err
    assert "of them from the cache" in err
    assert " 0 of them from the cache" not in err
    assert "never" not in err


def test_wrong_usage(tiny_llama, tiny_llama_without_template, tmp_path):
    assert talk(tiny_llama, [], tmp_path, "--overflow", "explode")[0] == 2
    code, _, err = talk(tiny_llama_without_template, ["one"], tmp_path)
    assert code == 1
    assert "no chat template" in err
    assert "Traceback" not in err


class Terminal:
    """A tmux session of its own server."""

    def __init__(self, folder, model, *options, columns=100):
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        variables = [f"{name}={os.environ[name]}" for name in ("PYTHONPATH",) if name in os.environ]
        command = [sys.executable, "-m", "pykvq", "chat", str(model), "--temp", "0", *map(str, options)]
        line = shlex.join(["env", *variables, f"PYKVQ_CACHE={folder}", *command]) + "; echo ended with $?; sleep 60"
        subprocess.run([*self._tmux, "new-session", "-d", "-x", str(columns), "-y", "30", line], check=True, cwd=folder)

    def send(self, *keys):
        subprocess.run([*self._tmux, "send-keys", *keys], check=True)

    def screen(self):
        return subprocess.run(
            [*self._tmux, "capture-pane", "-p"], check=True, capture_output=True, encoding="utf-8"
        ).stdout

    def expect(self, text, seconds=60, *, gone=False):
        end = time.monotonic() + seconds
        while (text in self.screen()) is gone:
            assert time.monotonic() < end, f"{text!r}, gone: {gone}, is awaited:\n{self.screen()}"
            time.sleep(0.1)

    def close(self):
        subprocess.run([*self._tmux, "kill-server"], check=False)


@pytest.fixture
def terminal(tmp_path, tiny_llama):
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    opened = []

    def start(*options, **settings):
        opened.append(Terminal(tmp_path, tiny_llama, *options, **settings))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_a_session_in_a_terminal(terminal):
    screen = terminal("-n", 8)
    screen.expect(">>>")
    screen.send("one", "Enter")
    screen.expect("| KV ")
    screen.send("/sav", "Tab")
    screen.expect(">>> /save")
    screen.send(" kept", "Enter")
    screen.expect("saved 2 messages to kept")
    screen.send("C-c")
    screen.expect("/exit or Ctrl-D leaves")
    screen.send("Up")
    screen.expect(">>> /save kept")
    screen.send("C-c")
    screen.send("C-d")
    screen.expect("ended with 0")


def test_interrupt_stops_the_answer_and_not_the_program(terminal):
    screen = terminal("-n", 1000000, "--ctx", 500000)
    screen.expect(">>>")
    screen.expect("ctx 0/")
    for _ in range(10):  # the random model may end its answer by itself first; then it is asked again
        screen.send("one", "Enter")
        time.sleep(0.5)
        screen.send("C-c")
        time.sleep(1)
        if "stopped" in screen.screen():
            break
    screen.expect("stopped", seconds=5)
    screen.send("/undo", "Enter")  # one line, where /show messages would scroll off a long answer
    screen.expect("taken back: one")
    screen.send("/exit", "Enter")
    screen.expect("ended with 0")


def test_twenty_columns(terminal):
    screen = terminal("-n", 8, columns=20)
    screen.expect(">>>")
    screen.send("one", "Enter")
    time.sleep(2)
    screen.send("/exit", "Enter")
    screen.expect("ended with 0")
