"""The verbs on good input, as a person or a script sees them."""

import json

import pytest
from command import run

import pykvq

PROMPT = ("--prompt", "the", "--max-tokens", "12", "--ignore-eos")


def generate(model, *options, **keywords):
    result = run("generate", model, *options, **keywords)
    assert result.code == 0, result.err
    return result


def test_text_goes_out_and_statistics_to_stderr(tiny_llama):
    result = generate(tiny_llama, *PROMPT, "--temp", "0")
    assert result.out.endswith("\n")
    last = result.err.splitlines()[-1]
    assert last.startswith("prompt: ")
    assert "generated: 12 tokens, " in last
    assert "/s (length); context: " in last
    assert " of 512; KV: " in last
    assert "512 bytes per token, 16.00 bits per element; seed: " in last


def test_prompt_sources_agree(tiny_llama, tmp_path):
    (tmp_path / "prompt.txt").write_text("the\n")
    options = ("--max-tokens", "12", "--ignore-eos", "--temp", "0")
    texts = {
        generate(tiny_llama, "--prompt", "the", *options).out,
        generate(tiny_llama, "-f", tmp_path / "prompt.txt", *options).out,
        generate(tiny_llama, *options, stdin=b"the\n").out,
        generate(tiny_llama, *options, stdin=b"the").out,
    }
    assert len(texts) == 1


def test_seed_repeats(tiny_llama):
    options = (*PROMPT, "--temp", "1.5", "--json")
    first = json.loads(generate(tiny_llama, *options).out)
    again = json.loads(generate(tiny_llama, *options, "--seed", first["seed"]).out)
    other = json.loads(generate(tiny_llama, *options).out)
    assert again["tokens"] == first["tokens"]
    assert other["tokens"] != first["tokens"]


def test_json(tiny_llama):
    result = generate(tiny_llama, *PROMPT, "--json", "--raw", "--temp", "0")
    record = json.loads(result.out)
    assert result.err == ""
    assert (record["n_prompt_tokens"], len(record["tokens"]), record["finish_reason"]) == (2, 12, "length")
    assert record["prompt_tokens_per_second"] > 0
    assert record["decode_tokens_per_second"] > 0
    assert record["plan"]["n_ctx"] == 512
    assert record["text"] == generate(tiny_llama, *PROMPT, "--raw", "--temp", "0").out.removesuffix("\n")


def n_prompt_tokens(model, *options) -> int:
    return json.loads(generate(model, *PROMPT, "--json", *options).out)["n_prompt_tokens"]


def test_template(tiny_llama, tiny_llama_without_template):
    assert n_prompt_tokens(tiny_llama) == n_prompt_tokens(tiny_llama, "--chat")
    assert n_prompt_tokens(tiny_llama, "--raw") == n_prompt_tokens(tiny_llama_without_template) == 2
    assert n_prompt_tokens(tiny_llama, "--chat") > 10
    assert n_prompt_tokens(tiny_llama, "--system", "short") > n_prompt_tokens(tiny_llama, "--chat") + 10
    result = run("generate", tiny_llama_without_template, *PROMPT, "--chat")
    assert (result.code, result.out) == (1, "")
    assert "the file has no chat template, and no built-in one fits" in result.err


def test_stop(tiny_llama):
    text = generate(tiny_llama, *PROMPT, "--temp", "0").out
    cut = generate(tiny_llama, *PROMPT, "--temp", "0", "--stop", "never", "--stop", text[3:5])
    assert cut.out == text[: text.index(text[3:5])] + "\n"
    assert "(stop)" in cut.err


def test_context(tiny_llama):
    result = generate(tiny_llama, "--prompt", "the", "--ctx", "64", "--max-tokens", "500", "--ignore-eos")
    assert "context: 64 of 64" in result.err


def test_verbose_shows_the_plan(tiny_llama):
    assert generate(tiny_llama, *PROMPT, "-v", "--threads", "1").err.startswith("1 threads; weights 0.6 MiB, KV cache ")


def test_info(tiny_llama):
    shown = run("info", tiny_llama)
    facts = json.loads(run("info", tiny_llama, "--json").out)
    assert shown.code == 0
    assert facts["architecture"] == "llama"
    assert facts["tensor_types"] == {"F16": 16, "F32": 5}
    assert facts["tokenizer"] == "gpt2/smollm"
    assert facts["context"] == 512
    assert facts["kv_bytes_per_token"]["f16"] == 512
    assert facts["chat_template"] == "in the file"
    assert facts["runs"] is True
    for words in ("llama", "F16: 16, F32: 5", "gpt2/smollm", "f16: 512"):
        assert words in shown.out


def test_info_of_a_file_that_cannot_run(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba9")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    facts = json.loads(run("info", tmp_path / "other.gguf", "--json").out)
    assert facts["architecture"] == "mamba9"
    assert "mamba9" in facts["runs"]


@pytest.mark.parametrize("text", ["the cat", "", "日本 \U0001f600", "<|im_start|>the"])
def test_tokenize(tiny_llama, text):
    import pykvq

    ids = pykvq.Tokenizer.from_gguf(tiny_llama).encode(text, parse_special=True)
    assert run("tokenize", tiny_llama, text).out == " ".join(map(str, ids)) + "\n"
    assert json.loads(run("tokenize", tiny_llama, "--json", stdin=text.encode()).out) == {"ids": ids}


def test_tokenize_options(tiny_llama):
    import pykvq

    tokenizer = pykvq.Tokenizer.from_gguf(tiny_llama)
    plain = run("tokenize", tiny_llama, "<|im_end|>", "--no-special", "--bos").out
    assert plain.split() == [str(i) for i in tokenizer.encode("<|im_end|>", add_bos=True)]


def test_models(tmp_path):
    shown = run("models", cache=tmp_path)
    records = json.loads(run("models", "--json", cache=tmp_path).out)
    assert "smollm2" in shown.out
    assert "Apache-2.0" in shown.out
    assert [record["name"] for record in records if not record["cached"]] == ["smollm2"]
    assert records[0]["path"] == str(tmp_path / "models" / "smollm2.gguf")


def test_version_and_help():
    import pykvq

    assert run("--version").out == f"pykvq {pykvq.__version__}\n"
    for verb in ("generate", "models", "pull", "info", "tokenize"):
        result = run(verb, "--help")
        assert result.code == 0
        assert "Usage: pykvq" in result.out


def test_what_shapes_and_guesses_the_answer(tiny_llama, tmp_path):
    pytest.importorskip("llguidance")
    options = ("--prompt", "the", "--temp", "0")
    assert generate(tiny_llama, *options, "--regex", "(ab|cd)e").out in ("abe\n", "cde\n")
    (tmp_path / "schema").write_text('{"enum": [12345]}')
    assert json.loads(generate(tiny_llama, *options, "--json-schema", tmp_path / "schema").out) == 12345
    (tmp_path / "grammar").write_text('start: "xyz"')
    assert generate(tiny_llama, *options, "--grammar", tmp_path / "grammar").out == "xyz\n"
    plain = generate(tiny_llama, *PROMPT, "--temp", "0")
    for guess in (("--lookup",), ("--draft", tiny_llama)):
        assert generate(tiny_llama, *PROMPT, "--temp", "0", *guess).out == plain.out
    (tmp_path / "schema").write_text('{"type": "integer", "minimum": 5, "maximum": 3}')
    result = run("generate", tiny_llama, *options, "--json-schema", tmp_path / "schema")
    assert (result.code, result.out, len(result.err.splitlines())) == (1, "", 1)
    assert "Unsatisfiable" in result.err


def test_templates_and_tools(tiny_llama_without_template, tiny_llama, tmp_path):
    from conftest import write_llama

    special = ["<u>", "<start_of_turn>", "<end_of_turn>"]
    gemma = write_llama(tmp_path / "gemma.gguf", template=None, special=special)
    assert "gemma is used" not in generate(gemma, *PROMPT).err  # a base model may have these tokens
    assert "gemma is used" in generate(gemma, *PROMPT, "--chat").err
    n_chatml = n_prompt_tokens(tiny_llama_without_template, "--template", "chatml")
    assert n_chatml > n_prompt_tokens(tiny_llama_without_template)
    (tmp_path / "own.jinja").write_text("{{ tools | tojson if tools }}{{ enable_thinking is defined }}")
    own = n_prompt_tokens(tiny_llama, "--template", tmp_path / "own.jinja")
    (tmp_path / "tools.json").write_text('[{"type": "function", "function": {"name": "f"}}]')
    assert n_prompt_tokens(tiny_llama, "--template", tmp_path / "own.jinja", "--tools", tmp_path / "tools.json") > own
    assert n_prompt_tokens(tiny_llama, "--template", tmp_path / "own.jinja", "--think") == own - 1  # True, not False
    result = run("generate", tiny_llama, *PROMPT, "--raw", "--think")
    assert (result.code, result.out) == (2, "")


def test_a_type_that_hurts_small_models_is_named(tiny_llama):
    command = ["generate", tiny_llama, "--prompt", "the", "--max-tokens", "2"]
    kv = next(kv for kv in pykvq.kv_types() if kv.instead)
    result = run(*command, "--kv", kv.name)
    assert result.code == 0
    assert f"warning: {kv.name} " in result.err
    assert f"{kv.instead} loses less" in result.err
    assert "warning" not in run(*command, "--kv", kv.instead).err
