"""Every verb but chat, typed by a person into a shell in a real terminal."""

import re

# A line that is typed, and what the terminal must show then; {model} and {talkative} are files
SESSION = [
    ("pykvq --version", "pykvq 0."),
    ("pykvq models", "smollm2  SmolLM2-135M-Instruct"),
    ("pykvq doctor", "instruction set"),
    ("pykvq info {model} --kv kivi2", "kv bytes per token"),
    ("pykvq tokenize {model} the", "256 101"),
    ("pykvq kv {model} --memory 1GiB", "longest context in 1GiB"),
    ("pykvq plan {model} --kv f16,tier2", "| tier2 |"),
    ("pykvq bench {model} -p 8 -n 2 -r 1", "| tg2 "),
    ("pykvq eval {model} --kv kivi2 --ctx 256 --batch 64 --chunks 1 --save rows.jsonl", "| kivi2 |"),
    ("pykvq plot rows.jsonl -o plots", "plots/quality.svg"),
    ("pykvq quantize {model} Q8_0 -o small.gguf", "small.gguf: "),
    ("pykvq generate small.gguf --temp 0 -n 4 -p one", "(length); context: "),
    ("pykvq pull smolm2", "did you mean smollm2?"),
    ("pykvq generate {model} --max-token 3", "--max-tokens"),
    ("pykvq convert .", "--output"),
]


def test_every_verb(terminal, tiny_llama):
    screen = terminal(columns=160)
    for line, shown in SESSION:
        before = screen.expect("$ ")
        screen.type(line.format(model=tiny_llama) + "; echo done $?")
        after = screen.expect("\ndone ", times=before.count("\ndone ") + 1)
        assert shown in after[len(before.rstrip()) :], after


def test_an_answer_is_streamed_and_interrupted(terminal, talkative_llama):
    screen = terminal(columns=80)
    screen.expect("$ ")
    screen.type(f"pykvq generate {talkative_llama} --temp 0 -p one -n 1000000 --ctx 100000; echo done $?")
    screen.wait(lambda text: len(max(re.findall("[A-Za-z]+", text), key=len)) > 300, "an answer")
    screen.press("C-c")
    assert "(cancelled); context: " in screen.expect("\ndone 130")


def test_a_long_prompt_says_how_far_it_is(terminal, tiny_llama, tmp_path):
    (tmp_path / "long").write_text("x" * 150_000)
    screen = terminal(columns=80)
    screen.expect("$ ")
    screen.type(f"pykvq generate {tiny_llama} --raw --temp 0 -n 1 --ctx 200000 -f long; echo done $?")
    screen.expect("reading the prompt, ")
    screen.press("C-c")
    assert "reading" not in screen.expect("\ndone 130")
