"""Flags about how an answer is made: structured, guessed, any setting of the sampler."""

import json
import re

from command import run


def generate(model, *options):
    return run("generate", str(model), "-p", "the cat, the cat, the cat", "--seed", "1", *options)


def test_structured_output(tiny_llama, tmp_path):
    (tmp_path / "schema.json").write_text('{"enum": ["one", [2]]}')
    (tmp_path / "number.lark").write_text("start: /[1-9]{3}/")
    assert re.fullmatch("[ab]{8}\n", generate(tiny_llama, "--regex", "[ab]{8}").out)
    assert json.loads(generate(tiny_llama, "--json-schema", str(tmp_path / "schema.json")).out) in ("one", [2])
    assert json.loads(generate(tiny_llama, "--json-schema", '{"const": {"a": 1}}', "--set", "mirostat=2").out) == {
        "a": 1
    }
    result = generate(tiny_llama, "--grammar", str(tmp_path / "number.lark"), "--temp", "2")
    assert re.fullmatch("[1-9]{3}\n", result.out)
    assert "(grammar)" in result.err


def test_guessed_tokens(tiny_llama):
    options = ("--raw", "--temp", "0", "--ignore-eos", "-n", "120", "--json", "--set", "logit_bias=97:9")
    plain, lookup, draft = (
        json.loads(generate(tiny_llama, *options, *more).out)
        for more in ((), ("--lookup", "--draft-tokens", "4"), ("--draft", str(tiny_llama)))
    )
    assert plain["tokens"] == lookup["tokens"] == draft["tokens"]
    assert plain["n_drafted"] == 0 < lookup["n_accepted"] <= lookup["n_drafted"]


def test_wrong_flags(tiny_llama, tmp_path):
    for options, code, sentence in (
        (("--set", "typicalp=1"), 1, "did you mean typical_p?"),
        (("--set", "mirostat"), 2, "NAME=VALUE"),
        (("--json-schema", str(tmp_path / "missing")), 1, "missing: No such file"),
        (("--json-schema", '{"type": "strng"}'), 1, "json_schema: Invalid type: strng"),
        (("--regex", "a", "--json-schema", "{}"), 1, "expected one of json_schema, regex, grammar, got 2"),
        (("--lookup", "--draft", str(tiny_llama)), 1, "lookup and draft exclude each other"),
    ):
        result = generate(tiny_llama, *options)
        assert (result.code, sentence in result.err) == (code, True), (options, result.err)
        assert not result.out


def test_chat(tiny_llama):
    lines = b"the\n/show settings\n/set regex none\nthe\n/stats\n"
    result = run("chat", str(tiny_llama), "--regex", "a{4}", "--lookup", "--set", "top_k=3", "-n", "30", stdin=lines)
    assert result.out.startswith("aaaa\n")
    for line in ("regex: a{4}", "lookup: True", "top_k: 3", "regex: None"):
        assert line in result.err
