"""Divergence of a compressed cache's logits from those of an f16 cache, which sees the same tokens in lock step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from ..engine import Engine, EngineOptions
from ..errors import ArgumentError, PykvqError
from .metrics import Divergence

if TYPE_CHECKING:
    import numpy.typing as npt

    from ..model import Model


class Windows:
    """A text as windows of `ctx` tokens, each run from an empty cache, of which the last `n_scored` tokens count."""

    def __init__(self, model: Model, text: str, *, ctx: int, count: int, n_scored: int) -> None:
        """Cut the text from its start; the model's begin-of-text token is put in front of each window if it wants one.

        Raises:
            ArgumentError: the text is too short.
        """
        tokenizer = model.tokenizer
        bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        tokens = tokenizer.encode(text, add_bos=False)
        n_text = ctx - len(bos)
        if len(tokens) < count * n_text + 1:
            raise ArgumentError(
                f"text: {len(tokens)} tokens, {count} windows of {ctx} need {count * n_text + 1}: "
                f"give a longer text, a smaller context, or at most {(len(tokens) - 1) // n_text} windows"
            )
        if not 2 <= n_scored <= ctx:
            raise ArgumentError(f"scored tokens: {n_scored}, expected 2 to {ctx}, the context")
        self.ctx, self.n_scored = ctx, n_scored
        # of each: the tokens to feed, and the tokens that come after the scored ones
        self.tokens = [bos + tokens[i * n_text : (i + 1) * n_text] for i in range(count)]
        self.targets = [tokens[(i + 1) * n_text + 1 - n_scored : (i + 1) * n_text + 1] for i in range(count)]


class Run:
    """A sequence that keeps the logits of the tokens that count."""

    def __init__(self, stack: ExitStack, model: Model, windows: Windows, batch: int, options: EngineOptions) -> None:
        options = {**options, "ctx": windows.ctx, "seqs": 1, "batch": batch, "logits": batch}
        self.engine = stack.enter_context(Engine(model, **options))
        self.sequence = self.engine.sequence()

    def restart(self) -> None:
        """Empty the cache."""
        self.sequence.rewind(0)

    def feed(self, tokens: list[int], n_scored: int) -> npt.NDArray[np.float32]:
        """The logits of the last `n_scored` tokens: (n_scored, n_vocab)."""
        self.sequence.keep_logits(all_tokens=n_scored > 0)
        self.sequence.push(tokens)
        self.engine.step([self.sequence])
        return self.sequence.logits()[len(tokens) - n_scored :] if n_scored else np.empty((0, 0), np.float32)


def diverge(
    model: Model,
    types: Iterable[str],
    windows: Windows,
    *,
    batch: int,
    options: EngineOptions,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, float] | PykvqError]:
    """Run the text through an f16 cache and one cache per type, together.

    Args:
        types: what `--kv` takes.
        batch: tokens fed in one step; a lossy cache shows its loss to later steps only, so figures depend on this.
        options: of the engines; what they say of the cache is not for the f16 one.
        progress: is told how many tokens were fed since it was last told.

    Returns:
        the figures of each type, or what went wrong with it.

    Raises:
        PykvqError: the f16 run failed.
    """
    batch = min(batch, windows.ctx)
    results: dict[str, dict[str, float] | PykvqError] = {}
    with ExitStack() as stack:
        exact: EngineOptions = {k: v for k, v in options.items() if not k.startswith("kv")}  # pyright: ignore
        reference = Run(stack, model, windows, batch, exact)
        runs: dict[str, tuple[Run, Divergence]] = {}
        for kv in types:
            try:
                runs[kv] = Run(stack, model, windows, batch, {**options, "kv": kv}), Divergence()
            except PykvqError as error:
                results[kv] = error
        for tokens, targets in zip(windows.tokens, windows.targets, strict=True):
            reference.restart()
            for run, _ in runs.values():
                run.restart()
            for begin in range(0, windows.ctx, batch):
                piece = tokens[begin : begin + batch]
                n_later = windows.ctx - begin - len(piece)  # tokens after this piece
                n_scored = min(len(piece), max(0, windows.n_scored - n_later))
                first = windows.n_scored - n_later - n_scored
                expected = reference.feed(piece, n_scored)
                for kv, (run, divergence) in list(runs.items()):
                    try:
                        divergence.add(expected, run.feed(piece, n_scored), targets[first : first + n_scored])
                    except PykvqError as error:
                        results[kv] = error
                        del runs[kv]
                if progress:
                    progress(len(piece))
        for kv, (run, divergence) in runs.items():
            plan = run.engine.plan
            results[kv] = divergence.summary() | {
                "bits_per_element": plan.kv_bits_per_element,
                "kv_bytes_per_token": plan.kv_bytes_per_token,
                "n_bad_elements": run.engine.stats.n_kv_bad_elements,
            }
    return results
