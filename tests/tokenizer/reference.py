"""What the published tokenizers do, said independently of pykvq: their components, or their patterns elsewhere."""
# ruff: noqa: RUF001

import json

import regex
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from .texts import CORPUS

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
CJK = "[一-龥ࠀ-一가-\ud7ff]+"
# what deepseek-llm lists range by range: letters with case, but no Armenian small, Georgian or mathematical ones
DEEPSEEK_WORD = r"\s?(?:(?![\u0560-\u0588\u10c7-\u10ff\u2d00-\u2d2d\U0001d400-\U0001d7cb])[\p{Lu}\p{Ll}\p{Lt}])+"
DEEPSEEK_MARKS = "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"

DIGITS = pre_tokenizers.Digits(individual_digits=True)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

# Rows whose published tokenizer.json consists of the library's own components ...
COMPONENTS = {
    "gpt-2": [BYTE_LEVEL],
    "mpt": [BYTE_LEVEL],
    "starcoder": [DIGITS, BYTE_LEVEL],
    "refact": [DIGITS, BYTE_LEVEL],
    "smollm": [DIGITS, BYTE_LEVEL],
    "command-r": [DIGITS, BYTE_LEVEL],
    "falcon": [
        pre_tokenizers.Punctuation("contiguous"),
        BYTE_LEVEL,
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ],
}
# ... or of patterns, here run by another regular expression engine.
PATTERNS = {
    "default": [r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "llama-bpe": [LLAMA3],
    "dbrx": [LLAMA3],
    "qwen2": [QWEN2],
    "qwen35": [QWEN35],
    "tekken": [TEKKEN],
    "gpt-4o": [GPT_4O],
    "deepseek-llm": [r"[\r\n]", DEEPSEEK_WORD, DEEPSEEK_MARKS, r"\s+$", CJK, r"\p{N}"],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"],
    "deepseek-v3": DEEPSEEK_V3,
}
NFC_ROWS = {"mpt", "command-r", "qwen2"}
IGNORE_MERGES_ROWS = {"llama-bpe", "tekken"}
ROWS = [*COMPONENTS, *PATTERNS]

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def words(row, text):
    """The words of a text as the published tokenizer of a row cuts them, in the characters that stand for bytes."""
    if row in NFC_ROWS:
        text = normalizers.NFC().normalize_str(text)
    if row in COMPONENTS:
        return [word for word, _ in pre_tokenizers.Sequence(COMPONENTS[row]).pre_tokenize_str(text)]
    pieces = [text]
    for pattern in PATTERNS[row]:
        pieces = [part for piece in pieces for part in _isolate(pattern, piece)]
    return ["".join(word for word, _ in _BYTES.pre_tokenize_str(piece)) for piece in pieces]


def _isolate(pattern, text):
    """Cut a text into the matches of a pattern and what lies between them."""
    end, parts = 0, []
    for match in regex.finditer(pattern, text):
        parts += [text[end : match.start()], match[0]]
        end = match.end()
    return [part for part in [*parts, text[end:]] if part]


def ids(row, model, text):
    """The ids that a BPE model of the library makes of the words of a text."""
    return [token.id for word in words(row, text) for token in model.tokenize(word)]


class ByteLevelReference:
    """A tiny tokenizer of the library, trained and used with the words of a row."""

    def __init__(self, row):
        self.row = row
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=900,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=SPECIAL_TOKENS,
        )
        corpus = words(row, CORPUS)
        tokenizer.train_from_iterator(corpus, trainer)
        model = json.loads(tokenizer.to_str())["model"]
        self.vocab, self.merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
        if row in IGNORE_MERGES_ROWS:  # words that no merge makes: only to be found if merges are ignored
            for word in sorted({word for word in corpus if len(word) > 5} - set(self.vocab))[:100]:
                self.vocab[word] = len(self.vocab)
        self.model = models.BPE(self.vocab, self.merges, ignore_merges=row in IGNORE_MERGES_ROWS)

    def ids(self, text):
        return ids(self.row, self.model, text)

    def metadata(self):
        """The metadata of a GGUF file that holds this tokenizer."""
        tokens = sorted(self.vocab, key=self.vocab.get)
        return {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": self.row,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3 if token in SPECIAL_TOKENS else 1 for token in tokens],
            "tokenizer.ggml.merges": [" ".join(pair) for pair in self.merges],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.ggml.add_bos_token": False,
        }
