"""Run GGUF language models with a compressed KV cache.

with pykvq.Model.open("smollm2") as model:
    for piece in pykvq.generate(model, model.chat_tokens([{"role": "user", "content": "Why is the sky blue?"}])):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._ffi import lib, text
from .chat import Conversation, Piece, chat
from .engine import Engine, EngineOptions, KVLayer, Plan, Sequence, Stats, plan
from .errors import (
    ArgumentError,
    BusyError,
    CancelledError,
    DeviceError,
    FileError,
    FormatError,
    FullError,
    NumericError,
    OutOfMemoryError,
    PykvqError,
    UnsupportedError,
)
from .generate import FinishReason, GenerateOptions, Generation, GenerationResult, TokenLogprobs, generate
from .gguf import GGUFFile
from .kv import KVType, KVTypeName, kv_types
from .model import Model, ModelInfo
from .sampling import Sampler

if TYPE_CHECKING:
    from .chat_template import ChatTemplate
    from .tokenizer import Tokenizer

__version__ = text(lib.pykvq_version())


def __getattr__(name: str) -> object:
    """Import what brings a library of its own only when it is asked for."""
    if name == "ChatTemplate":
        from .chat_template import ChatTemplate

        return ChatTemplate
    if name == "Tokenizer":
        from .tokenizer import Tokenizer

        return Tokenizer
    raise AttributeError(f"module 'pykvq' has no attribute {name!r}")


__all__ = [
    "ArgumentError",
    "BusyError",
    "CancelledError",
    "ChatTemplate",
    "Conversation",
    "DeviceError",
    "Engine",
    "EngineOptions",
    "FileError",
    "FinishReason",
    "FormatError",
    "FullError",
    "GGUFFile",
    "GenerateOptions",
    "Generation",
    "GenerationResult",
    "KVLayer",
    "KVType",
    "KVTypeName",
    "Model",
    "ModelInfo",
    "NumericError",
    "OutOfMemoryError",
    "Piece",
    "Plan",
    "PykvqError",
    "Sampler",
    "Sequence",
    "Stats",
    "TokenLogprobs",
    "Tokenizer",
    "UnsupportedError",
    "chat",
    "generate",
    "kv_types",
    "plan",
]
