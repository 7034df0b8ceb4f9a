"""Fixtures that the tests share: small models written to GGUF."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from terminal import Terminal

# The tests are for the installed package, with its compiled module, but Python looks into the current folder first:
# `python -m pytest` in the checkout would find the sources, and so would every `python -c` that a test starts there.
ROOT = Path(__file__).parents[1]
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != ROOT]

# A test run in the background is deaf to Ctrl-C, and so would be what it starts, among it what tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Run the tests in an empty folder, without the user's file of defaults."""
    os.environ["PYKVQ_CONFIG"] = os.devnull
    os.chdir(tmp_path_factory.mktemp("elsewhere"))


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
N_EMBD, N_HEAD, N_HEAD_KV, N_FF, N_LAYER, N_CTX = 128, 2, 1, 160, 2, 512


def _byte_tokens() -> list[str]:
    """The characters that stand for bytes 0 .. 255 in a byte-level vocabulary."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


def _add_tokenizer(writer: gguf.GGUFWriter, template: str | None, special: list[str]) -> int:
    """A byte-level vocabulary with one merge, "th"; its size."""
    tokens = [*_byte_tokens(), "th", *special]
    kinds = [gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * len(special)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(tokens.index(special[1]))
    writer.add_eos_token_id(tokens.index(special[2]))
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)
    return len(tokens)


def write_llama(
    path: Path, template: str | None = TEMPLATE, seed: int = 1, special: list[str] = SPECIAL, talkative: bool = False
) -> Path:
    """A random llama of 2 layers, about 500 kB, with F16 matrices. A talkative one says letters and never ends."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    n_vocab = _add_tokenizer(writer, template, special)
    writer.add_vocab_size(n_vocab)

    def matrix(name: str, n_out: int, n_in: int) -> None:
        writer.add_tensor(name, (random.standard_normal((n_out, n_in)) / n_in**0.5).astype(np.float16))

    def norm(name: str) -> None:
        writer.add_tensor(name, (1 + 0.1 * random.standard_normal(N_EMBD)).astype(np.float32))

    n_kv = N_EMBD // N_HEAD * N_HEAD_KV
    matrix("token_embd.weight", n_vocab, N_EMBD)
    for i in range(N_LAYER):
        norm(f"blk.{i}.attn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", N_EMBD, N_EMBD)
        matrix(f"blk.{i}.attn_k.weight", n_kv, N_EMBD)
        matrix(f"blk.{i}.attn_v.weight", n_kv, N_EMBD)
        matrix(f"blk.{i}.attn_output.weight", N_EMBD, N_EMBD)
        norm(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.ffn_gate.weight", N_FF, N_EMBD)
        matrix(f"blk.{i}.ffn_up.weight", N_FF, N_EMBD)
        matrix(f"blk.{i}.ffn_down.weight", N_EMBD, N_FF)
    norm("output_norm.weight")
    output = random.standard_normal((n_vocab, N_EMBD)) / N_EMBD**0.5
    if talkative:  # what is no letter has logit 0, and of so many letters one is above that
        output[[i for i, token in enumerate(_byte_tokens()) if not (token.isascii() and token.isalpha())]] = 0
        output[256:] = 0
    writer.add_tensor("output.weight", output.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama with a byte-level vocabulary and a chat template, context 512. Read-only."""
    return write_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def talkative_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head that, at temperature 0, says letters and never ends. Read-only."""
    return write_llama(tmp_path_factory.mktemp("models") / "talkative.gguf", talkative=True)


@pytest.fixture(scope="session")
def tiny_llama_without_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without a chat template, or tokens that would tell which one it needs. Read-only."""
    path = tmp_path_factory.mktemp("models") / "plain.gguf"
    return write_llama(path, template=None, special=["<unk>", "<s>", "</s>"])


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Opens terminals whose folder is tmp_path."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    opened: list[Terminal] = []

    def start(*arguments: object, columns: int = 100) -> Terminal:
        opened.append(Terminal(tmp_path, *arguments, columns=columns))
        return opened[-1]

    yield start
    for each in opened:
        each.close()
