"""`pykvq info`: what a model is."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from . import common
from .common import DebugOption, JsonOption, ModelArgument, mib

if TYPE_CHECKING:
    from ..gguf import GGUFFile


def info(model: ModelArgument, json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show what a model is: architecture, weight types, context, tokenizer, memory of its KV cache."""
    from ..gguf import GGUFFile

    path = common.fetch(model)
    with GGUFFile.open(path) as file:
        facts = _file_facts(file) | _model_facts(path)
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
        "chat_template": "tokenizer.chat_template" in file.metadata,
    }


def _model_facts(path: str) -> dict[str, Any]:
    """What it is once opened, or why it cannot be run."""
    from ..engine import plan
    from ..errors import PykvqError
    from ..kv import kv_types
    from ..model import Model

    try:
        with Model.open(path) as model:
            per_token = {kv.name: plan(model, kv=kv.name).kv_bytes_per_token for kv in kv_types()}
            info = model.info
    except PykvqError as error:
        return {"runs": str(error)}
    return {
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


def _show(name: str, value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case dict():
            items = cast(dict[str, Any], value).items()
            return ", ".join(f"{key}: {_show(name, item)}" for key, item in items)
        case int() if name == "file_bytes":
            return mib(value)
        case int() | float():
            return f"{value:,.0f}"
        case _:
            return str(value)
