"""Real vocabularies: PYKVQ_VOCABS is a folder of vocabulary-only files NAME.gguf with NAME.gguf.inp and NAME.gguf.out
beside them (llama.cpp publishes such a set in its folder `models`): texts, and ids that the original tokenizers made.
"""

import dataclasses
import os
import unicodedata
from pathlib import Path

import pytest

from pykvq.errors import UnsupportedError
from pykvq.gguf import GGUFFile
from pykvq.tokenizer import Tokenizer, pretokenizers

FOLDER = Path(os.environ.get("PYKVQ_VOCABS", ""))
FILES = sorted(FOLDER.glob("*.gguf")) if "PYKVQ_VOCABS" in os.environ else []
SEPARATOR = b"\n__ggml_vocab_test__\n"

pytestmark = pytest.mark.skipif("PYKVQ_VOCABS" not in os.environ, reason="PYKVQ_VOCABS names no folder of vocabularies")


def read_pairs(path):
    """Pairs of a text and its ids."""
    texts = Path(f"{path}.inp").read_bytes().split(SEPARATOR)
    lines = Path(f"{path}.out").read_text().splitlines()
    assert len(texts) == len(lines)
    return [(text, [int(token_id) for token_id in line.split()]) for text, line in zip(texts, lines, strict=True)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ids(path, monkeypatch):
    with GGUFFile.open(path) as file:
        metadata = dict(file.metadata)
    try:
        tokenizer = Tokenizer.from_metadata(metadata)
    except UnsupportedError as error:
        assert repr(metadata["tokenizer.ggml.model"]) in str(error)
        return
    if not Path(f"{path}.inp").exists():
        return
    pairs = read_pairs(path)
    row = metadata.get("tokenizer.ggml.pre", "default")
    if row == "qwen35":  # these ids were made of text that was not normalized, which the original tokenizer does
        changed = [text for text, ids in pairs if tokenizer.encode(text, add_bos=False) != ids]
        assert all(not unicodedata.is_normalized("NFC", text.decode()) for text in changed)
        as_it_is = dataclasses.replace(pretokenizers.PRE_TOKENIZERS[row], nfc=False)
        monkeypatch.setitem(pretokenizers.PRE_TOKENIZERS, row, as_it_is)
        tokenizer = Tokenizer.from_metadata(metadata)
    for text, ids in pairs:
        assert tokenizer.encode(text, add_bos=False) == ids, text
        assert tokenizer.decode_bytes(ids) == text


def test_there_are_vocabularies():
    assert FILES, f"{FOLDER} holds no vocabulary"
