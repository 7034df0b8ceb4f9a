"""Tokenizers on their way into a file: byte-level BPE, SentencePiece, added tokens, BOS and EOS rules."""

import json

import pytest
import sentencepiece
from checkpoints import N_VOCAB, byte_level_tokenizer, checkpoint
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from pykvq import Model
from pykvq.convert import convert
from pykvq.convert.check import TEXT
from pykvq.tokenizer.bytelevel import word_splitter
from pykvq.tokenizer.pretokenizers import PRE_TOKENIZERS

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@pytest.fixture
def folder(tmp_path):
    checkpoint(tmp_path / "hf")
    return tmp_path / "hf"


def opened(folder) -> Model:
    convert(folder, folder.parent / "out.gguf", force=True)
    return Model.open(folder.parent / "out.gguf")


def test_tokens_are_those_of_the_original(folder):
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with opened(folder) as model:
        for text in TEXT, "the <tool> and <|im_end|>", "":
            assert model.tokenizer.encode(text, parse_special=True) == original.encode(text).ids
        assert model.tokenizer.special_tokens == {"<|endoftext|>": 258, "<|im_end|>": 259, "<tool>": 260}
        assert "<tool>" in model.tokenizer.decode(model.tokenizer.encode("a <tool>"))
        assert (model.tokenizer.bos_id, model.tokenizer.eos_id) == (258, 259)
        assert (model.tokenizer.add_bos, model.tokenizer.add_eos) == (False, False)


def test_llama3(folder):
    """Split and ByteLevel, merges ignored for whole tokens, BOS by a template: as Meta publishes it."""
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = byte_level_tokenizer(folder, pre_tokenizers.Sequence([split, words]), ignore_merges=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 258)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    with opened(folder) as model:
        assert model.gguf.metadata["tokenizer.ggml.pre"] == "llama-bpe"
        assert model.tokenizer.add_bos
        assert model.tokenizer.encode("the") == [258, tokenizer.token_to_id("the")]


def test_bos_and_eos(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [("<|endoftext|>", 258), ("<|im_end|>", 259)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=special
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    with opened(folder) as model:
        assert (model.tokenizer.add_bos, model.tokenizer.add_eos) == (True, True)
        assert model.tokenizer.encode("x")[0] == 258
        assert model.tokenizer.encode("x")[-1] == 259


@pytest.mark.parametrize("name", [name for name in PRE_TOKENIZERS if name != "default"])
def test_every_pre_tokenizer_is_recognized(folder, name):
    """By its definition: the name that is written stands for the same row, or one that says the same."""
    row = PRE_TOKENIZERS[name]
    tokenizer = byte_level_tokenizer(folder, word_splitter(row), ignore_merges=row.ignore_merges)
    if row.nfc:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.save(str(folder / "tokenizer.json"))
    with opened(folder) as model:
        written = PRE_TOKENIZERS[str(model.gguf.metadata["tokenizer.ggml.pre"])]
    same = ("splits", "byte_splits", "nfc", "ignore_merges")
    assert [getattr(written, key) for key in same] == [getattr(row, key) for key in same]


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    """A BPE model with byte fallback, as Llama 2 and Gemma have."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text").write_text("the cat sat on the mat\nthe other cat sat there too\nhere is the mat\n" * 30)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "m"), vocab_size=N_VOCAB - 4, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return folder / "m.model"


def test_sentencepiece(folder, sentencepiece_model):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
    added = {str(N_VOCAB - 4): {"content": "<|user|>", "special": True}}
    config = {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    original = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    with opened(folder) as model:
        tokenizer = model.tokenizer
        assert tokenizer.encode(TEXT) == [original.bos_id(), *original.encode(TEXT)]
        assert tokenizer.token_id("<|user|>") == N_VOCAB - 4
        assert "<|user|>" in tokenizer.special_tokens
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.n_vocab) == (1, 2, N_VOCAB)


def test_sentencepiece_in_the_form_of_the_tokenizers_library(folder, sentencepiece_model):
    """No tokenizer.model: scores come from the order of merges."""
    fast = of_sentencepiece(sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model)))
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    with opened(folder) as model:
        assert model.gguf.metadata["tokenizer.ggml.model"] == "llama"
        assert model.tokenizer.encode(TEXT, add_bos=False) == fast.encode(TEXT, add_special_tokens=False).ids


def of_sentencepiece(original: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """What transformers makes of a Llama tokenizer: every way to put a token together is a merge, best score first."""
    scores = {original.id_to_piece(i): original.get_score(i) for i in range(len(original))}
    parts = [(t[:i], t[i:]) for t in scores for i in range(1, len(t)) if t[:i] in scores and t[i:] in scores]
    merges = sorted(parts, key=lambda pair: -scores["".join(pair)])
    vocab = {token: i for i, token in enumerate(scores)}
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer
