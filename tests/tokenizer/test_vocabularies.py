"""Real vocabularies: PYKVQ_VOCABS is a folder of vocabulary-only files NAME.gguf with NAME.gguf.inp and NAME.gguf.out
beside them (llama.cpp publishes such a set in its folder `models`): texts, and ids that the original tokenizers made.
"""

import os
from pathlib import Path

import pytest
from tokenizers.models import BPE

from pykvq.errors import ArgumentError, UnsupportedError
from pykvq.gguf import GGUFFile
from pykvq.tokenizer import Tokenizer

from . import reference
from .texts import CORPUS, TRICKY

FOLDER = Path(os.environ.get("PYKVQ_VOCABS", ""))
FILES = sorted(FOLDER.glob("*.gguf")) if "PYKVQ_VOCABS" in os.environ else []
SEPARATOR = b"\n__ggml_vocab_test__\n"

pytestmark = pytest.mark.skipif("PYKVQ_VOCABS" not in os.environ, reason="PYKVQ_VOCABS names no folder of vocabularies")


def read_pairs(path):
    """Pairs of a text and its ids."""
    texts = Path(f"{path}.inp").read_bytes().removesuffix(SEPARATOR).split(SEPARATOR)
    lines = Path(f"{path}.out").read_text().splitlines()
    assert len(texts) == len(lines)
    return [(text, [int(token_id) for token_id in line.split()]) for text, line in zip(texts, lines, strict=True)]


def read_metadata(path):
    with GGUFFile.open(path) as file:
        return dict(file.metadata)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_ids(path):
    metadata = read_metadata(path)
    if metadata["tokenizer.ggml.model"] not in ("gpt2", "llama"):
        with pytest.raises(UnsupportedError, match=metadata["tokenizer.ggml.model"]):
            Tokenizer.from_metadata(metadata)
        return
    tokenizer = Tokenizer.from_metadata(metadata)
    if not Path(f"{path}.inp").exists():
        pytest.skip("no ids beside the file")
    pairs = read_pairs(path)
    for text, ids in pairs:
        assert tokenizer.encode(text, add_bos=False) == ids, text
        assert tokenizer.decode_bytes(ids) == text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ids_of_the_library(path):
    metadata = read_metadata(path)
    if metadata["tokenizer.ggml.model"] != "gpt2":
        pytest.skip("not byte-level BPE")
    tokenizer = Tokenizer.from_metadata(metadata)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    row = metadata.get("tokenizer.ggml.pre", "default")
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    model = BPE(vocab, merges, ignore_merges=row in reference.IGNORE_MERGES_ROWS)
    user_defined = [token for token, token_type in zip(tokens, types, strict=True) if token_type == 4]
    byte_tokens = {
        token for token, token_type in zip(tokens, types, strict=True) if token_type == 1 and len(token) == 1
    }
    n_compared = 0
    for text in [*TRICKY, *CORPUS.splitlines()]:
        if any(token in text for token in user_defined):
            continue
        if set("".join(reference.words(row, text))) <= byte_tokens:
            assert tokenizer.encode(text, add_bos=False) == reference.ids(row, model, text), repr(text)
            n_compared += 1
        else:
            with pytest.raises(ArgumentError, match="has no token in this vocabulary"):
                tokenizer.encode(text)
    assert n_compared > 40


def test_there_are_vocabularies():
    assert FILES, f"{FOLDER} holds no vocabulary"
