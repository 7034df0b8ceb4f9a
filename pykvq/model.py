"""Models: an opened GGUF file, immutable, shared between engines and threads."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ._ffi import check, ffi, lib, path_bytes, text
from .errors import ArgumentError, UnsupportedError
from .gguf import GGUFFile

if TYPE_CHECKING:
    from .chat_template import ChatTemplate
    from .engine import Engine
    from .tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelInfo:
    """What a model is."""

    arch: str  # "llama"
    name: str  # general.name, or ""
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int  # the context it was trained for, tokens
    n_window: int  # tokens that a sliding-window layer sees; 0: no such layer
    n_layer_window: int  # how many layers have that window
    n_params: int
    n_file_bytes: int
    fingerprint: int  # of hyperparameters, tensor table and samples of the weights


class Model:
    """A model ready to run. A context manager; closing it closes its engines, closing twice is fine."""

    _handle: Any = None

    def __init__(self, handle: Any, path: str) -> None:
        self._handle = handle
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self.path = path
        self.info = _info(handle)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Model:
        """Open a GGUF file by path, by a name of the registry, or as `hf:owner/repo/file.gguf`.

        A model that is not on this machine yet is downloaded into the cache folder first.

        Raises:
            FileError: the file cannot be opened, or the download failed.
            FormatError: it is not a sound GGUF file.
            UnsupportedError: this build cannot run the architecture or a weight type.
        """
        from .registry import locate

        file = locate(path)
        out = ffi.new("pykvq_model **")
        check(lib.pykvq_model_open(path_bytes(file), out))
        return cls(out[0], os.fspath(file))

    @property
    def handle(self) -> Any:
        """The C object."""
        if self._handle is None:
            raise ArgumentError(f"{self.path}: the model is closed")
        return self._handle

    @property
    def gguf(self) -> GGUFFile:
        """The metadata and tensor table of the model's file, readable until the model is closed."""
        return GGUFFile(lib.pykvq_model_gguf(self.handle), self.path, model=self)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the file describes.

        Raises:
            UnsupportedError: its kind or pre-tokenizer is not known.
        """
        from .tokenizer import Tokenizer

        return Tokenizer.from_metadata(self.gguf.metadata)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The file's chat template, or else a built-in one that fits the vocabulary (`fallback` names it), or None."""
        from .chat_template import ChatTemplate

        return ChatTemplate.from_tokenizer(self.tokenizer)

    def chat_tokens(self, messages: Iterable[Mapping[str, Any]], **variables: Any) -> list[int]:
        """The prompt of a conversation, by the model's chat template. Control tokens named in a message stay text.

        Args:
            messages: {"role": "system" | "user" | "assistant" | "tool", "content": text}, oldest first.
            variables: what else the template knows: `tools`, a list of functions as JSON schemas;
                `enable_thinking=False`; `add_generation_prompt=False`; ...

        Raises:
            UnsupportedError: the file has no chat template, and none of the built-in ones fits.
            ArgumentError: the template refuses these messages.
        """
        if self.chat_template is None:
            raise UnsupportedError(
                f"{self.path}: the file has no chat template, and no built-in one fits its vocabulary"
            )
        return self.chat_template.tokens(self.tokenizer, messages, **variables)

    def adopt(self, engine: Engine) -> None:
        """Remember an engine on this model, so that `close` closes it first."""
        self._engines.add(engine)

    def close(self) -> None:
        """Close the model and every engine on it."""
        if self._handle is None:
            return
        for engine in list(self._engines):
            engine.close()
        handle, self._handle = self._handle, None
        lib.pykvq_model_close(handle)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self.path!r}: {self.info.arch}, {self.info.n_params:,} parameters>"


def _info(handle: Any) -> ModelInfo:
    raw = ffi.new("pykvq_model_info *")
    lib.pykvq_model_get_info(handle, raw)
    counts = {name: int(getattr(raw, name)) for name in ModelInfo.__annotations__ if name not in ("arch", "name")}
    return ModelInfo(arch=text(raw.arch), name=text(raw.name), **counts)
