"""`pykvq info`: what a model is."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from . import common, options
from .common import mib

if TYPE_CHECKING:
    from ..engine import EngineOptions
    from ..gguf import GGUFFile

EXAMPLES = """
pykvq info smollm2
pykvq info smollm2 --kv tier2 --ctx 8192  # its KV cache stored like this
pykvq info model.gguf --json
"""


def info(
    model: options.Model,
    kv: options.KV = None,
    kv_k: options.KVK = None,
    kv_v: options.KVV = None,
    kv_layers: options.KVLayers = None,
    kv_sink: options.KVSink = None,
    kv_tail: options.KVTail = None,
    ctx: Annotated[int | None, typer.Option(min=1, help="Most tokens of one sequence.", show_default=False)] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what a model is: architecture, weight types, context, tokenizer, chat template, memory of its KV cache.

    With options of the cache also what it takes stored like this, sink and tail included.
    """
    from ..gguf import GGUFFile

    cache: EngineOptions = {
        "kv": kv,
        "kv_k": kv_k,
        "kv_v": kv_v,
        "kv_layers": kv_layers,
        "kv_sink": kv_sink,
        "kv_tail": kv_tail,
        "ctx": ctx,
    }
    is_asked = any(value is not None for value in cache.values())
    path = common.fetch(model)
    with GGUFFile.open(path) as file:
        facts = _file_facts(file) | _model_facts(path, cache if is_asked else None)
    if json:
        from json import dumps

        print(dumps(facts))
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _show(name, value))
    Console(soft_wrap=True, highlight=False, markup=False).print(table)


def _file_facts(file: GGUFFile) -> dict[str, Any]:
    """What the file says, whether this build can run it or not."""
    get = file.metadata.get
    tensor_types = Counter(tensor.type for tensor in file.tensors)
    return {
        "file": file.path,
        "file_bytes": file.n_bytes,
        "gguf_version": file.version,
        "name": get("general.name", ""),
        "architecture": get("general.architecture", ""),
        "licence": get("general.license", ""),
        "tensor_types": dict(tensor_types.most_common()),
        "tokenizer": "/".join(
            str(get(f"tokenizer.ggml.{part}")) for part in ("model", "pre") if get(f"tokenizer.ggml.{part}")
        ),
        "chat_template": _template_name(file),
    }


def _template_name(file: GGUFFile) -> str | None:
    """Where the chat template comes from."""
    from ..chat_template import ChatTemplate
    from ..errors import PykvqError
    from ..tokenizer import Tokenizer

    if "tokenizer.chat_template" in file.metadata:
        return "in the file"
    try:
        template = ChatTemplate.from_tokenizer(Tokenizer.from_metadata(file.metadata))
    except PykvqError:
        return None
    return template and f"built in: {template.fallback}"


def _model_facts(path: str, cache: EngineOptions | None) -> dict[str, Any]:
    """What it is once opened, or why it cannot be run; with a setting of the cache also what that takes."""
    from ..engine import plan
    from ..errors import PykvqError
    from ..kv import kv_types
    from ..model import Model

    try:
        with Model.open(path) as model:
            per_token = {kv.name: plan(model, kv=kv.name).kv_bytes_per_token for kv in kv_types()}
            info = model.info
            planned = plan(model, **cache) if cache else None
    except PykvqError as error:
        if cache:
            raise
        return {"runs": str(error)}
    facts: dict[str, Any] = {
        "parameters": info.n_params,
        "layers": info.n_layer,
        "embedding": info.n_embd,
        "heads": info.n_head,
        "kv_heads": info.n_head_kv,
        "head_dim": info.head_dim,
        "feed_forward": info.n_ff,
        "vocabulary": info.n_vocab,
        "context": info.n_ctx_train,
        "window": info.n_window,
        "window_layers": info.n_layer_window,
        "kv_bytes_per_token": per_token,
        "runs": True,
    }
    if planned:
        facts["cache"] = {
            "ctx": planned.n_ctx,
            "bits_per_element": planned.kv_bits_per_element,
            "bytes_per_token": planned.kv_bytes_per_token,
            "cache_bytes": planned.n_kv_bytes,
        }
    return facts


def _show(name: str, value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case dict():
            items = cast(dict[str, Any], value).items()
            return ", ".join(f"{key}: {_show(name, item)}" for key, item in items)
        case int() if name in ("file_bytes", "cache_bytes"):
            return mib(value)
        case float() if not value.is_integer():
            return f"{value:,.3f}"
        case int() | float():
            return f"{value:,.0f}"
        case None:
            return "none"
        case _:
            return str(value)
