"""Sweeps over KV types: rows that the result file has are taken from there, the others are measured and kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from ..engine import EngineOptions, plan
from ..errors import PykvqError
from ..results import ResultFile, Row, origin
from .divergence import Windows, diverge
from .retrieval import make_cases, retrieve

if TYPE_CHECKING:
    from ..model import Model

_MOST_TOGETHER = 4  # types that share one run of the f16 cache


class Sweep:
    """Measurements of some KV types on one model and text.

    Args:
        types: what `--kv` takes.
        text: what is run, or what contexts are filled with.
        text_name: how results call it.
        batch: tokens fed in one step.
        options: of the engines.
        file: where rows are kept.
        progress: is told (done, total) tokens of the task that runs.

    Raises:
        ArgumentError: a type is not known, or an option is out of its range.
    """

    def __init__(
        self,
        model: Model,
        types: Sequence[str],
        text: str,
        text_name: str,
        *,
        batch: int,
        options: EngineOptions,
        file: ResultFile,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        for kv in types:
            plan(model, **{**options, "kv": kv})
        self._model, self._types, self._text, self._batch = model, list(dict.fromkeys(types)), text, batch
        self._options, self._file, self._progress = options, file, progress
        self._origin = origin(model.path)
        given = {name: value for name, value in options.items() if value is not None and name != "threads"}
        text_sha256 = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        self._setting = {**given, "batch": batch, "text": text_name, "text_sha256": text_sha256}

    def divergence(self, *, ctx: int, count: int, n_scored: int) -> Iterator[Row]:
        """A row for each type: KL divergence from an f16 cache and perplexity. See `diverge`.

        Raises:
            ArgumentError: the text is too short.
        """
        windows = Windows(self._model, self._text, ctx=ctx, count=count, n_scored=n_scored)
        setting = {"ctx": ctx, "chunks": count, "n_scored": n_scored}
        missing = [kv for kv in self._types if self._find("divergence", kv, setting) is None]
        yield from self._found("divergence", setting)
        size = self._most_together(ctx)
        groups = [missing[i : i + size] for i in range(0, len(missing), size)]
        step = self._counter(len(groups) * count * ctx)
        for group in groups:
            results = diverge(self._model, group, windows, batch=self._batch, options=self._options, progress=step)
            for kv in group:
                yield self._keep("divergence", kv, setting, results[kv])

    def retrieval(
        self, task: str, *, lengths: Sequence[int], depths: Sequence[float], samples: int, seed: int
    ) -> Iterator[Row]:
        """A row for each type: right answers by length and depth. See `retrieve`.

        Raises:
            ArgumentError: no such task, or the text is too short.
        """
        cases = make_cases(self._model, task, self._text, lengths=lengths, depths=depths, samples=samples, seed=seed)
        setting = {"lengths": list(lengths), "depths": list(depths), "samples": samples, "seed": seed}
        missing = [kv for kv in self._types if self._find(task, kv, setting) is None]
        yield from self._found(task, setting)
        step = self._counter(len(missing) * sum(len(case.prompt) + len(case.answer) for case in cases))
        for kv in missing:
            result: Row | PykvqError
            try:
                result = retrieve(
                    self._model, cases, batch=self._batch, options={**self._options, "kv": kv}, progress=step
                )
            except PykvqError as error:
                result = error
            yield self._keep(task, kv, setting, result)

    def _key(self, task: str, kv: str, setting: Row) -> Row:
        """What a row must have to be taken instead of a new measurement."""
        fixed = {name: self._origin[name] for name in ("model", "commit", "versions")}
        return {"task": task, "kv": kv, "setting": {**self._setting, **setting}, **fixed}

    def _find(self, task: str, kv: str, setting: Row) -> Row | None:
        return self._file.find(self._key(task, kv, setting))

    def _found(self, task: str, setting: Row) -> Generator[Row]:
        for kv in self._types:
            if row := self._find(task, kv, setting):
                yield row

    def _keep(self, task: str, kv: str, setting: Row, result: Row | PykvqError) -> Row:
        row = self._key(task, kv, setting)
        if isinstance(result, PykvqError):
            return {**row, "error": str(result)}
        row = {**row, **result, **self._origin}
        self._file.append(row)
        return row

    def _most_together(self, ctx: int) -> int:
        """As many types as half of the machine's memory holds engines for, beside the f16 one."""
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        batch = min(self._batch, ctx)
        each = plan(self._model, **{**self._options, "ctx": ctx, "batch": batch, "logits": batch}).n_total_bytes
        return max(1, min(_MOST_TOGETHER, half // each - 1))

    def _counter(self, n_total: int) -> Callable[[int], None]:
        """Adds up what is done and tells the caller."""
        n_done = 0

        def step(n_tokens: int) -> None:
            nonlocal n_done
            n_done += n_tokens
            if self._progress:
                self._progress(n_done, n_total)

        return step
