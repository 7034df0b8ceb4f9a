"""How byte-level BPE models cut text into words before merging: one row of data per `tokenizer.ggml.pre`.

The patterns are those of the tokenizers that the models were published with. They run in order: each splits every piece
that the one before left into its matches and what lies between them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UnsupportedError

_DIGIT = r"\p{N}"  # each digit alone
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_SPACES = r"\s+(?!\S)|\s+"
_OTHER = r"[^\s\p{L}\p{N}]"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES


def _words(letter: str, digits: str, other: str) -> str:
    """The shape shared by the patterns that descend from cl100k."""
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{letter}+|{digits}| ?{other}+[\r\n]*|\s*[\r\n]+|{_SPACES}"


def _cased_words(contraction: str, digits: str) -> str:
    """The shape shared by the patterns that descend from o200k: a word is upper case letters, then lower case ones."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    letters = f"{lead}{upper}*{lower}+{contraction}|{lead}{upper}+{lower}*{contraction}"
    return rf"{letters}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACES}"


# deepseek-llm spells out which letters with case it means
_DEEPSEEK_LETTERS = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-"
    "\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-"
    "\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80"
    "-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-"
    "\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)


@dataclass(frozen=True)
class PreTokenizer:
    """One row."""

    splits: tuple[str, ...]  # patterns over the text
    byte_splits: tuple[str, ...] = ()  # patterns over the text after its bytes became characters
    nfc: bool = False  # the text is brought to Unicode normalization form C first
    ignore_merges: bool = False  # a word that is a token as it stands is that token, whatever the merges say
    add_bos: bool = False  # when the file does not say


PRE_TOKENIZERS = {
    # no published tokenizer calls itself this: what files without tokenizer.ggml.pre were converted for
    "default": PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((_GPT2,)),
    "mpt": PreTokenizer((_GPT2,), nfc=True),
    "starcoder": PreTokenizer((_DIGIT, _GPT2)),
    "refact": PreTokenizer((_DIGIT, _GPT2)),
    "smollm": PreTokenizer((_DIGIT, _GPT2)),
    "command-r": PreTokenizer((_DIGIT, _GPT2), nfc=True),
    "falcon": PreTokenizer((r"[\p{P}$+<=>^`|~]+", _GPT2), byte_splits=(r"\p{N}+", "[0-9][0-9][0-9]")),
    "llama-bpe": PreTokenizer((_words(r"\p{L}", r"\p{N}{1,3}", _OTHER),), ignore_merges=True, add_bos=True),
    "dbrx": PreTokenizer((_words(r"\p{L}", r"\p{N}{1,3}", _OTHER),)),
    "qwen2": PreTokenizer((_words(r"\p{L}", _DIGIT, _OTHER),), nfc=True),
    # The ids published with llama.cpp's vocabulary file of this name were made without NFC.
    "qwen35": PreTokenizer((_words(r"[\p{L}\p{M}]", _DIGIT, r"[^\s\p{L}\p{M}\p{N}]"),)),
    "tekken": PreTokenizer((_cased_words("", _DIGIT),), ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenizer((_cased_words(_CONTRACTION + "?", r"\p{N}{1,3}"),)),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _CJK,
            _DIGIT,
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT)),
    "deepseek-v3": PreTokenizer(
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
            rf" ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}",
        )
    ),
}

_ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "llama4": "gpt-4o",
    "phi-2": "gpt-2",
    "deepseek-r1-qwen": "qwen2",
}


def find_pre_tokenizer(name: str) -> PreTokenizer:
    """The row of a `tokenizer.ggml.pre`. An unknown one is refused: guessing gives plausible, wrong token ids."""
    row = PRE_TOKENIZERS.get(_ALIASES.get(name, name))
    if row is None:
        known = ", ".join(sorted([*PRE_TOKENIZERS, *_ALIASES]))
        raise UnsupportedError(f"tokenizer.ggml.pre: unknown pre-tokenizer {name!r}; known are {known}")
    return row
