"""Numbers of a conversation, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from ..engine import KVLayer
from .conversation import Conversation


def size(n_bytes: float) -> str:
    """A size."""
    if n_bytes < 2**20:
        return f"{n_bytes / 2**10:,.0f} KiB"
    return f"{n_bytes / 2**20:,.1f} MiB"


def status_line(conversation: Conversation) -> str:
    """What is in use, what matters most first: a narrow terminal cuts the end off."""
    layers = conversation.sequence.kv_layers()
    used, f16 = sum(layer.n_bytes for layer in layers), sum(layer.n_f16_bytes for layer in layers)
    parts = [f"{len(conversation.sequence):,} of {conversation.sequence.engine.plan.n_ctx:,} tokens"]
    if conversation.generation is not None:
        parts.append(f"{conversation.generation.result.decode_tokens_per_second:.0f} tokens/s")
    parts.append(f"KV {size(used)}" + (f", {used / f16:.0%} of f16" if used != f16 else ""))
    return " \u00b7 ".join(parts)


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
    if result.n_drafted:
        yield f"guessed: {result.n_accepted} of {result.n_drafted} tokens right ({result.acceptance:.0%})"
    yield status_line(conversation)


def kv_table(layers: Iterable[KVLayer], columns: int = 80) -> Iterator[str]:
    """What each layer uses against f16; neighbours that are the same share a line, or two where it is narrow."""
    numbered = list(enumerate(layers))
    groups = [(layer, [i for i, _ in group]) for layer, group in groupby(numbered, key=lambda item: item[1])]
    used, f16 = sum(layer.n_bytes for _, layer in numbered), sum(layer.n_f16_bytes for _, layer in numbered)
    is_wide = columns >= _N_COLUMNS
    if is_wide:
        yield f"{'layers':8} {'K':9} {'V':9} {'tokens':>7} {'encoded':>7} {'bytes':>11} {'as f16':>11} {'part':>5}"
    for layer, ids in groups:
        name = str(ids[0]) if len(ids) == 1 else f"{ids[0]}-{ids[-1]}"
        sizes = layer.n_bytes * len(ids), layer.n_f16_bytes * len(ids)
        if is_wide:
            kind = f"{name:8} {layer.type_k:9} {layer.type_v:9} {layer.n_held:7,} {layer.n_encoded:7,}"
            yield f"{kind} {sizes[0]:11,} {sizes[1]:11,} {_part(*sizes):>5}"
        else:
            yield f"{name}: {layer.type_k}/{layer.type_v}"
            yield f"  {size(sizes[0])}, {_part(*sizes)} of f16"
    total = f"{'all':44} {used:11,} {f16:11,} {_part(used, f16):>5}"
    yield total if is_wide else f"all: {size(used)}, {_part(used, f16)} of f16"


_N_COLUMNS = 74  # of the wide table


def _part(used: int, f16: int) -> str:
    return f"{used / f16:.0%}" if f16 else "100%"
