"""`pykvq chat` as a user runs it: through pipes, and in a real terminal with its keys sent and its screen read."""

import json
import os
import re
import subprocess
import sys


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
    assert "0-1      f16       f16" in err
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


def test_nothing_is_overwritten_that_is_no_conversation(tiny_llama, tmp_path):
    (tmp_path / "notes").write_text("mine")
    _, _, err = talk(tiny_llama, ["one", "/save notes", "/save talk", "/save talk"], tmp_path)
    assert "notes: not a saved conversation" in err
    assert err.count("saved 2 messages to talk") == 2
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_cache_of_another_type_reads_the_conversation_anew(tiny_llama, tmp_path):
    lines = ["x" * 300, "/kv kivi2", "/kv nonsense", "two", "/stats", "/kv"]
    code, _, err = talk(tiny_llama, lines, tmp_path)
    assert code == 0
    assert "the cache is kivi2 from here on" in err
    assert err.count("0-1      kivi2     kivi2") == 2
    assert "KV type 'nonsense'" in err
    assert re.search(r"prompt: \d+ tokens, 3\d\d of them from the cache", err)


def test_an_edit_that_does_not_fit_loses_nothing(tiny_llama, tmp_path):
    lines = ["one", "/edit " + "x" * 600, "/show messages"]
    code, _, err = talk(tiny_llama, lines, tmp_path, "--ctx", "128")
    assert code == 0
    assert "do not fit its 128 tokens" in err
    assert "user: one" in err
    assert "assistant: " in err


def test_tools_and_thinking_reach_the_template(tmp_path):
    from conftest import write_llama

    source = "{{ tools | tojson if tools }}{{ enable_thinking }}{{ messages[-1].role }}{{ raise_exception(0) }}"
    model = write_llama(tmp_path / "model.gguf", template=source.replace("raise_exception(0)", "messages[-1].content"))
    (tmp_path / "tools.json").write_text(json.dumps([{"name": "weather", "parameters": {}}]))
    lines = ["one", "/think on", "/tool 7", "/show messages", "/tool"]
    code, _, err = talk(model, lines, tmp_path, "--tools", "tools.json", "--no-think")
    assert code == 0
    assert "thinking: on, shown" in err
    assert "tool: 7" in err
    assert "/tool: expected the result" in err
    for text, words in (("{", "not JSON"), ("{}", "not a JSON list"), ("[1]", "tool 0 is no function")):
        (tmp_path / "tools.json").write_text(text)
        code, _, err = talk(model, [], tmp_path, "--tools", "tools.json")
        assert code == 1
        assert f"tools.json: {words}" in err


def test_a_template_that_raises_is_a_sentence(tmp_path):
    from conftest import write_llama

    model = write_llama(tmp_path / "model.gguf", template="{{ raise_exception('roles must alternate') }}")
    code, out, err = talk(model, ["one", "/show messages"], tmp_path)
    assert (code, out) == (0, "")
    assert err == "chat template: roles must alternate\n"


def test_a_built_in_template_is_named(tiny_llama_without_template, tiny_llama, tmp_path):
    from conftest import write_llama

    special = ["<u>", "<start_of_turn>", "<end_of_turn>"]
    model = write_llama(tmp_path / "model.gguf", template=None, special=special)
    code, _, err = talk(model, [], tmp_path)
    assert (code, err) == (0, "the file has no chat template; going by its vocabulary, gemma is used\n")
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    for model, template in ((tiny_llama_without_template, "chatml"), (tiny_llama, "own.jinja")):
        code, _, err = talk(model, ["/show template"], tmp_path, "--template", template)
        assert (code, "messages" in err, "no chat template" in err) == (0, True, False)
    code, _, err = talk(tiny_llama, ["one"], tmp_path, "--template", "chatlm")
    assert code == 1
    assert "expected one of llama3" in err


def test_a_reader_that_goes_away(talkative_llama, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "pykvq", "chat", str(talkative_llama), "-n", "1000000", "--ctx", "100000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
        cwd=tmp_path,
    )
    process.stdin.write(b"one\n")
    process.stdin.flush()
    process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"Traceback" not in err


def test_wrong_usage(tiny_llama, tiny_llama_without_template, tmp_path):
    assert talk(tiny_llama, [], tmp_path, "--overflow", "explode")[0] == 2
    code, _, err = talk(tiny_llama_without_template, ["one"], tmp_path)
    assert code == 1
    assert "no chat template" in err
    assert "Traceback" not in err


# ---- in a terminal ----


def test_a_session(terminal, tiny_llama):
    screen = terminal("chat", tiny_llama, "--temp", 0, "-n", 8)
    screen.expect("parameters, context 512, KV cache f16")
    screen.expect(">>>")
    screen.type("one")
    screen.expect("tokens/s")
    screen.press("/sav", "Tab")
    screen.expect(">>> /save")
    screen.type(" kept")
    screen.expect("saved 2 messages to kept")
    screen.press("C-c")
    screen.expect("/exit or Ctrl-D leaves")
    screen.press("Up")
    screen.expect(">>> /save kept", times=2)
    screen.press("C-c")
    screen.expect("/exit or Ctrl-D leaves", times=2)
    screen.press("C-d")
    screen.expect("ended with 0")


def n_letters(shown):
    """Letters of an answer: the talkative model says nothing else, in words longer than anybody's."""
    return sum(map(len, re.findall("[A-Za-z]{20,}", shown)))


def test_streamed_interrupted_regenerated_saved_loaded_and_continued(terminal, talkative_llama):
    screen = terminal("chat", talkative_llama, "--temp", 0, "-n", 10**6, "--ctx", 10**5)
    screen.expect(">>>")
    screen.type("one")
    first = n_letters(screen.wait(lambda shown: n_letters(shown) > 20, "an answer"))
    screen.wait(lambda shown: n_letters(shown) > first, "more of it")
    screen.press("C-c")
    screen.expect("stopped")
    screen.type("/set max_tokens 30")
    screen.expect("max_tokens: 30")
    screen.type("/regen")
    screen.expect("stopped after 30 tokens")
    screen.type("/save talk")
    screen.expect("saved 2 messages to talk")
    screen.press("C-d")
    screen.expect("ended with 0")

    screen = terminal("chat", talkative_llama, "--temp", 0, "-n", 30, "--ctx", 10**5, "--load", "talk")
    screen.expect(">>>")
    screen.type("two")
    screen.expect("stopped after 30 tokens")
    screen.type("/stats")
    reused = re.search(r"prompt: (\d+) tokens, (\d+) of them from the cache", screen.expect("from the cache"))
    assert 40 < int(reused[2]) < int(reused[1])  # the first question and its answer
    screen.type("/undo")
    screen.expect("taken back: two")
    screen.type("/exit")
    screen.expect("ended with 0")


def test_twenty_columns(terminal, tiny_llama):
    screen = terminal("chat", tiny_llama, "--temp", 0, "-n", 8, columns=20)
    screen.expect(">>>")
    for line in ("one", "/help", "/kv", "/stats", "/show"):
        screen.type(line)
    screen.expect("0-1: f16/f16")
    screen.expect("overflow: drop")
    screen.type("/exit")
    screen.expect("ended with 0")


def test_edit_in_a_terminal(terminal, tiny_llama):
    screen = terminal("chat", tiny_llama, "--temp", 0, "-n", 8)
    screen.expect(">>>")
    screen.type("one")
    screen.expect("tokens/s")
    screen.type("/edit")
    screen.expect(">>> one", times=2)
    screen.press("C-c")
    screen.expect("unchanged")
    screen.type("/edit")
    screen.expect(">>> one", times=3)
    screen.type(" more")
    screen.expect("tokens/s")
    screen.type("/undo")
    screen.expect("taken back: one more")
