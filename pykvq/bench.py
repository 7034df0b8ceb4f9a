"""Speed of prefill and decode by KV type, depth and number of sequences, against the memory bandwidth of the machine.

Names of fields are those of llama-bench's JSON where it has them.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from .engine import Engine, EngineOptions
from .engine import Sequence as Timeline
from .errors import PykvqError
from .model import Model
from .results import ResultFile, Row, origin

_PROBE_BYTES = 256 << 20  # beyond the caches


@dataclass(frozen=True)
class Test:
    """What is timed: at each depth the decode of some tokens of each sequence, and the prefill of a prompt."""

    depths: Sequence[int]  # tokens in the cache before, rising
    n_prompt: int  # of a prefill; 0: none
    n_gen: int  # of a decode, for each sequence; 0: none
    n_seqs: int  # sequences that are decoded together
    repeats: int
    seed: int

    @property
    def kinds(self) -> list[tuple[int, bool]]:
        """(tokens, is it a prefill) of what is timed at each depth."""
        return [(n, is_prompt) for n, is_prompt in ((self.n_prompt, True), (self.n_gen, False)) if n]


def measure_bandwidth(n_threads: int) -> float:
    """Bytes per second that this many threads read from memory: the best of several passes over a large array."""
    parts = np.array_split(np.ones(_PROBE_BYTES // 4, np.float32), n_threads)
    best = float("inf")
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(8):
            begin = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - begin)
    return _PROBE_BYTES / best


def bench(
    model: Model,
    test: Test,
    *,
    batch: int | None,
    options: EngineOptions,
    bandwidth: float | None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Row]:
    """Time a KV type: a row for each depth and kind of test.

    The cache is filled to a depth with random tokens; each repeat goes on from there and is taken back.

    Args:
        batch: most tokens in one step; None: the default of the device.
        options: of the engine.
        bandwidth: bytes per second of the memory that holds model and cache; None: not known.
        progress: is told (done, total) repeats.

    Raises:
        PykvqError: the engine cannot be made, or a step failed.
    """
    ctx = max(test.depths) + max(test.n_prompt, test.n_gen)
    n_done, n_total = 0, len(test.depths) * len(test.kinds) * test.repeats
    with Engine(model, **{**options, "ctx": ctx, "seqs": test.n_seqs, "batch": batch}) as engine:
        runner = _Runner(engine, test)
        runner.warm_up()
        for depth in test.depths:
            runner.feed(runner.sequences, depth - len(runner.sequences[0]), is_prompt=True)
            for n_tokens, is_prompt in test.kinds:
                n_kv_bytes = sum(target.n_kv_bytes for target in runner.targets(is_prompt))
                seconds: list[float] = []
                for _ in range(test.repeats):
                    seconds.append(runner.measure(n_tokens, is_prompt=is_prompt))
                    n_done += 1
                    if progress:
                        progress(n_done, n_total)
                yield runner.row(n_tokens, seconds, n_kv_bytes, bandwidth, is_prompt=is_prompt)


class _Runner:
    """The sequences of a test on an engine, all of the same depth."""

    def __init__(self, engine: Engine, test: Test) -> None:
        self._engine, self._test = engine, test
        self._rng = random.Random(test.seed)
        self.sequences = [engine.sequence() for _ in range(test.n_seqs)]

    def feed(self, targets: list[Timeline], n_tokens: int, *, is_prompt: bool) -> float:
        """Seconds for so many random tokens of each sequence, in steps as large as possible, or one by one."""
        n_vocab, at_once = self._engine.model.info.n_vocab, self._engine.plan.n_batch if is_prompt else 1
        tokens = [[self._rng.randrange(n_vocab) for _ in range(n_tokens)] for _ in targets]
        begin = time.perf_counter()
        for i in range(0, n_tokens, at_once):
            for target, new in zip(targets, tokens, strict=True):
                target.push(new[i : i + at_once])
            self._step(targets)
        return time.perf_counter() - begin

    def warm_up(self) -> None:
        """Load kernels, choose products of the test's shapes."""
        n_few = min(64, self._engine.plan.n_ctx)
        for n_tokens, is_prompt in ((n_few, False), (self._test.n_prompt, True)):
            self.feed(self.targets(is_prompt), n_tokens, is_prompt=is_prompt)
            for sequence in self.sequences:
                sequence.rewind(0)

    def measure(self, n_tokens: int, *, is_prompt: bool) -> float:
        """Seconds for so many tokens, which are taken back."""
        targets, depth = self.targets(is_prompt), len(self.sequences[0])
        seconds = self.feed(targets, n_tokens, is_prompt=is_prompt)
        for target in targets:
            target.rewind(depth)
        self._step(targets)
        return seconds

    def row(
        self, n_tokens: int, seconds: list[float], n_kv_bytes: int, bandwidth: float | None, *, is_prompt: bool
    ) -> Row:
        """What was measured at this depth, with a cache of so many bytes."""
        plan, targets = self._engine.plan, self.targets(is_prompt)
        n_steps = -(-n_tokens // plan.n_batch) if is_prompt else n_tokens
        n_fed = n_tokens * len(targets)
        bytes_moved = n_steps * (_weight_bytes(self._engine.model) + n_kv_bytes) / n_fed
        rates = [n_fed / s for s in seconds]
        return {
            "n_prompt": n_tokens if is_prompt else 0,
            "n_gen": 0 if is_prompt else n_tokens,
            "n_depth": len(self.sequences[0]),
            "n_seqs": len(targets),
            "n_batch": plan.n_batch,
            "n_threads": plan.n_threads,
            "samples_ns": [round(s * 1e9) for s in seconds],
            "samples_ts": rates,
            "median_ts": statistics.median(rates),
            "min_ts": min(rates),
            "max_ts": max(rates),
            "bytes_per_token": bytes_moved,
            "bandwidth": bandwidth,
            "bandwidth_fraction": bandwidth and statistics.median(rates) * bytes_moved / bandwidth,
            "n_kv_bytes": n_kv_bytes,
            "n_kv_pool_bytes": plan.n_kv_bytes,
            "bits_per_element": plan.kv_bits_per_element,
        }

    def targets(self, is_prompt: bool) -> list[Timeline]:
        """Prompts run alone, decodes together."""
        return self.sequences[:1] if is_prompt else self.sequences

    def _step(self, targets: list[Timeline]) -> None:
        while any(sequence.n_pending for sequence in targets):
            self._engine.step([sequence for sequence in targets if sequence.n_pending])


class Sweep:
    """Tests of KV types on devices; rows that the result file has are taken from there, the others are kept there.

    Args:
        batch: most tokens in one step; None: the default of each device.
        options: of the engines.
        file: where rows are kept.
        progress: is told (done, total) repeats of the test that runs.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch: int | None,
        options: EngineOptions,
        file: ResultFile,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._model, self._batch, self._options, self._file, self._progress = model, batch, options, file, progress
        self._origin = origin(model.path)
        self._bandwidth: float | None = None

    def rows(self, kv: str, device: str, test: Test) -> Iterator[Row]:
        """The rows of a test, or one with what went wrong."""
        key = self._key(kv, device, test)
        found = [row for row in self._file.rows if self._file.matches(row, key)]
        if len(found) == len(test.depths) * len(test.kinds):
            yield from found
            return
        options: EngineOptions = {**self._options, "kv": kv, "device": device}
        try:
            rows = bench(
                self._model, test, batch=self._batch, options=options, bandwidth=self._measured(device),
                progress=self._progress,
            )  # fmt: skip
            for row in rows:
                row = {**key, **row, **self._origin}
                self._file.append(row)
                yield row
        except PykvqError as error:
            yield {**key, "error": str(error)}

    def _key(self, kv: str, device: str, test: Test) -> Row:
        given = {name: value for name, value in self._options.items() if value is not None}
        k, _, v = kv.partition("/")
        fixed = {name: self._origin[name] for name in ("model", "commit", "versions")}
        return {
            "task": "bench",
            "kv": kv,
            "device": device,
            "setting": {**given, "batch": self._batch, **asdict(test)},
            "type_k": self._options.get("kv_k") or k,
            "type_v": self._options.get("kv_v") or v or k,
            "model_size": self._model.info.n_file_bytes,
            "model_n_params": self._model.info.n_params,
            **fixed,
        }

    def _measured(self, device: str) -> float | None:
        """The bandwidth of the CPU's memory, measured once; that of other devices is not known here."""
        if device != "cpu":
            return None
        if self._bandwidth is None:
            self._bandwidth = measure_bandwidth(self._options.get("threads") or os.cpu_count() or 1)
        return self._bandwidth


def _weight_bytes(model: Model) -> int:
    """What every step reads: all weights but the token embedding, unless that is the output matrix as well."""
    tensors = {tensor.name: tensor.n_bytes for tensor in model.gguf.tensors}
    unread = tensors.get("token_embd.weight", 0) if "output.weight" in tensors else 0
    return sum(tensors.values()) - unread
