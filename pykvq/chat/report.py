"""Numbers of a conversation, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from ..engine import KVLayer
from ..generate import Generation
from .conversation import Conversation


def mib(n_bytes: float) -> str:
    """A size."""
    return f"{n_bytes / 2**20:,.2f} MiB"


def status_line(conversation: Conversation) -> str:
    """Context and cache, short enough for one line."""
    layers = conversation.sequence.kv_layers()
    used, f16 = sum(layer.n_bytes for layer in layers), sum(layer.n_f16_bytes for layer in layers)
    line = f"ctx {len(conversation.sequence)}/{conversation.sequence.engine.plan.n_ctx}"
    line += f" | KV {mib(used)} (f16 {mib(f16)})"
    return line if conversation.generation is None else f"{line} | {_speed(conversation.generation)}"


def statistics(conversation: Conversation) -> Iterator[str]:
    """Lines about the last answer."""
    generation = conversation.generation
    if generation is None:
        yield "no answer yet"
        return
    result = generation.result
    yield (
        f"prompt: {result.n_prompt_tokens} tokens, {result.n_reused_tokens} of them from the cache, "
        f"{result.prompt_tokens_per_second:.1f}/s"
    )
    yield f"answer: {len(result.tokens)} tokens, {result.decode_tokens_per_second:.1f}/s ({result.finish_reason})"
    yield status_line(conversation)


def kv_table(layers: Iterable[KVLayer]) -> Iterator[str]:
    """What each layer uses against f16; neighbours that are the same share a line."""
    yield f"{'layers':8} {'K':8} {'V':8} {'tokens':>7} {'encoded':>7} {'bytes':>11} {'as f16':>11} {'part':>5}"
    numbered = list(enumerate(layers))
    for layer, group in groupby(numbered, key=lambda item: item[1]):
        ids = [i for i, _ in group]
        name = str(ids[0]) if len(ids) == 1 else f"{ids[0]}-{ids[-1]}"
        kind = f"{name:8} {layer.type_k:8} {layer.type_v:8} {layer.n_held:7} {layer.n_encoded:7}"
        yield f"{kind} {_sizes(layer.n_bytes * len(ids), layer.n_f16_bytes * len(ids))}"
    used, f16 = sum(layer.n_bytes for _, layer in numbered), sum(layer.n_f16_bytes for _, layer in numbered)
    yield f"{'all':42} {_sizes(used, f16)}"


def _sizes(used: int, f16: int) -> str:
    return f"{used:11,} {f16:11,} {100 * used / f16 if f16 else 100:4.0f}%"


def _speed(generation: Generation) -> str:
    result = generation.result
    return f"{result.prompt_tokens_per_second:.0f} and {result.decode_tokens_per_second:.1f} tokens/s"
