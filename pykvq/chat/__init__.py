"""Conversations: the turns, their cache, and the terminal that `pykvq chat` shows them in."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..generate import DRAFT_LOGITS, GenerateOptions, sequence_on
from ..model import Model
from .conversation import Conversation, Overflow, Piece

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..engine import Engine, EngineOptions, Sequence
    from ..sampling import Sampler

__all__ = ["Conversation", "Overflow", "Piece", "chat"]


def chat(
    target: Model | Engine | Sequence,
    *,
    system: str | None = None,
    sampler: Sampler | None = None,
    max_tokens: int = 1024,
    overflow: Overflow = "drop",
    thinking: bool | None = None,
    tools: list[dict[str, Any]] | None = None,
    answers: GenerateOptions | None = None,
    **options: Unpack[EngineOptions],
) -> Conversation:
    """Begin a conversation; `ask` it things.

    Args:
        target: a model (an engine is made), an engine (a sequence is made), or a sequence that is to follow it.
        system: the system message.
        sampler: of the answers; default `Sampler()`.
        max_tokens: of one answer.
        overflow: when the context is full, "drop" the oldest turns, or "stop" with `FullError`.
        thinking: whether the model thinks before it answers; None: as its template decides.
        tools: functions that the model may call, as JSON schemas.
        answers: how they are made: `json_schema`, `regex`, `grammar`, `lookup`, `draft`, `draft_tokens` of `generate`.
        options: of the engine, if target is a model.

    Returns:
        a conversation. Close it, or use it as a context manager, and what was made for it is closed.

    Raises:
        UnsupportedError: the model has no chat template.
        ArgumentError: an option is out of its range.
    """
    with ExitStack() as resources:
        if isinstance(target, Model) and options.get("logits") is None:
            options["logits"] = DRAFT_LOGITS
        sequence = sequence_on(target, options, resources)
        conversation = Conversation(
            sequence,
            system=system,
            sampler=sampler,
            max_tokens=max_tokens,
            overflow=overflow,
            thinking=thinking,
            tools=tools,
        )
        conversation.options.update(answers or {})
        if isinstance(small := conversation.options.get("draft"), Model):  # whose cache follows the conversation too
            options = {"ctx": sequence.engine.plan.n_ctx}
            conversation.options["draft"] = sequence_on(small, options, resources)
        conversation.resources = resources.pop_all()
        return conversation
