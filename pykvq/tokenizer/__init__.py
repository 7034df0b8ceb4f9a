"""Tokenizers built from the metadata of a GGUF file: text to token ids and back.

Reading order: `tokenizer` (the public class), `vocabulary` (metadata, checked), `bytelevel` and `sentencepiece` (the
two algorithms), `pretokenizers` (how byte-level models cut text into words: rows of data), `special` (tokens that are
matched as a whole).
"""

from .tokenizer import Tokenizer, TokenStream

__all__ = ["TokenStream", "Tokenizer"]
