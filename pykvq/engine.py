"""Engines step sequences: a model on a device, with a pool of cache pages that is sized once."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from ._ffi import check, ffi, lib, path_bytes, text
from .device import load_cublas
from .errors import ArgumentError
from .model import Model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from .kv import KVTypeName
    from .sampling import Sampler

DEFAULT_CTX = 4096  # tokens, if the model was trained for as many


class EngineOptions(TypedDict, total=False):
    """The options of an `Engine`; None stands for the default."""

    ctx: int | None  # most tokens of one sequence; default: as trained, but at most DEFAULT_CTX
    seqs: int | None  # sequences whose full context the pool holds; default 1
    batch: int | None  # most tokens in one step; default 512, on a GPU 2048
    logits: int | None  # most logit rows kept from one step; default: seqs
    threads: int | None  # default: the cores that this process may use
    device: str | None  # default "cpu"
    kv: KVTypeName | str | None  # KV type of the cache, or "K/V"; default "f16"
    kv_k: KVTypeName | str | None  # KV type of the keys, if it differs
    kv_v: KVTypeName | str | None  # KV type of the values, if it differs
    kv_layers: str | None  # exceptions by layer: "0-1,-1:TYPE,4:TYPE"
    kv_sink: int | None  # first tokens kept in f16; default: the type's
    kv_tail: int | None  # newest tokens kept in f16; default: the type's
    exact: bool | None  # for measuring: no rounding to int8 (weights as float32); cuda never does; default False


_FIELDS = {  # option -> member of pykvq_engine_params
    "ctx": "n_ctx",
    "seqs": "n_seq",
    "batch": "n_batch",
    "logits": "n_logits",
    "threads": "n_threads",
    "device": "device",
    "kv": "kv",
    "kv_k": "kv_k",
    "kv_v": "kv_v",
    "kv_layers": "kv_layers",
    "kv_sink": "kv_sink",
    "kv_tail": "kv_tail",
    "exact": "exact",
}


@dataclass(frozen=True)
class Plan:
    """The memory an engine takes, computed by the code that allocates it."""

    n_weight_bytes: int  # the mapped file; of a GPU, as all these, its own memory
    n_kv_bytes: int  # the page pools
    n_scratch_bytes: int  # activations, logits, tables
    n_total_bytes: int
    kv_bytes_per_token: float  # of one sequence, once encoded, all layers
    kv_bits_per_element: float  # over a full context: codes, scales, sink and tail
    n_ctx: int  # most tokens of one sequence
    n_seq: int  # sequences whose full context the pool holds
    n_batch: int  # most tokens in one step
    n_logits: int  # most logit rows kept from one step
    n_threads: int


@dataclass(frozen=True)
class KVLayer:
    """What one layer's cache of a sequence is, and takes."""

    type_k: str
    type_v: str
    n_window: int  # tokens it sees; 0: all
    n_held: int  # tokens it holds
    n_encoded: int  # of these, the encoded ones; the rest is f16
    n_bytes: int  # of the pages in use
    n_f16_bytes: int  # what they would take if all were f16


@dataclass(frozen=True)
class Stats:
    """What an engine has done so far."""

    n_prompt_tokens: int  # fed in runs of several
    n_decode_tokens: int  # fed one at a time
    prompt_seconds: float
    decode_seconds: float
    n_kv_bytes_used: int  # pages in use now
    n_kv_bad_elements: int  # keys and values that were NaN or beyond what f16 holds, and were made finite
    n_seq_open: int


def plan(model: Model, **options: Unpack[EngineOptions]) -> Plan:
    """What an `Engine` with these options would take, without creating it. Raises what `Engine` raises."""
    params, _strings = _params(model, options)
    raw = ffi.new("pykvq_plan *")
    check(lib.pykvq_engine_plan(model.handle, params, raw))
    return _record(Plan, raw)


class Engine:
    """A model on a device. A context manager; closing it closes its sequences, closing twice is fine.

    Any number of threads may use an engine, each with sequences of its own: they take turns, step by step. Logits are
    there until the next step of the engine, so step and read them within `with engine.use():`, which keeps other
    threads out. `cancel` is the one call that does not wait.

    Args:
        model: stays alive as long as the engine.
        options: see `EngineOptions`.

    Raises:
        ArgumentError: an option is out of its range.
        UnsupportedError: the device or the KV type cannot run this model.
        OutOfMemoryError: the pool does not fit.
    """

    _handle: Any = None

    def __init__(self, model: Model, **options: Unpack[EngineOptions]) -> None:
        self._lock = threading.RLock()  # held by the thread that uses the engine
        self._step_lock = threading.RLock()  # of what cancel looks at, maybe in a signal handler of the same thread:
        self._stepping: list[Sequence] = []
        self._is_closing = False
        self._sequences: weakref.WeakSet[Sequence] = weakref.WeakSet()
        self._dropped: list[Any] = []  # handles of sequences collected while another thread used the engine
        self.model = model
        params, _strings = _params(model, options)
        out = ffi.new("pykvq_engine **")
        check(lib.pykvq_engine_create(model.handle, params, out))
        self._handle = out[0]
        model.adopt(self)
        raw = ffi.new("pykvq_plan *")
        lib.pykvq_engine_get_plan(self._handle, raw)
        self.plan: Plan = _record(Plan, raw)

    @contextmanager
    def use(self) -> Generator[Any, None, None]:
        """The engine for this thread alone: other threads wait. Gives the C object."""
        with self._lock:
            if self._handle is None or self._is_closing:
                raise ArgumentError("engine: it is closed")
            while self._dropped:
                lib.pykvq_seq_destroy(self._dropped.pop())
            yield self._handle

    def sequence(self) -> Sequence:
        """A new, empty sequence.

        Raises:
            FullError: the pool has no room for one more.
        """
        out = ffi.new("pykvq_seq **")
        with self.use() as handle:
            check(lib.pykvq_seq_create(handle, out))
            return self.adopt(out[0])

    def adopt(self, handle: Any) -> Sequence:
        """Wrap the handle of a sequence of this engine."""
        sequence = Sequence(self, handle)
        self._sequences.add(sequence)
        return sequence

    def drop(self, handle: Any) -> None:
        """Destroy a sequence, at once or when the thread that uses the engine is done."""
        if not self._lock.acquire(blocking=False):
            self._dropped.append(handle)
            return
        try:
            if self._handle is not None:  # else the engine destroyed its sequences with itself
                lib.pykvq_seq_destroy(handle)
        finally:
            self._lock.release()

    def step(self, sequences: Iterable[Sequence]) -> None:
        """Feed pending tokens of these sequences, together at most `plan.n_batch`: single pending tokens first.

        Call it until nothing is pending. On failure or cancellation every sequence is as before.

        Raises:
            ArgumentError: nothing is pending, or a sequence belongs to another engine.
            CancelledError: `cancel` was called meanwhile.
            FullError: the page pool is full.
        """
        batch = list(sequences)
        if any(sequence.engine is not self for sequence in batch):
            raise ArgumentError("step: a sequence belongs to another engine")
        with self.use() as handle:
            with self._step_lock:
                self._stepping = batch
            try:
                check(lib.pykvq_engine_step(handle, [sequence.handle for sequence in batch], len(batch)))
            finally:
                with self._step_lock:
                    self._stepping = []
                    lib.pykvq_engine_cancel(handle, False)  # what came too late must not hit the next step

    def cancel(self, sequence: Sequence | None = None) -> None:
        """End the step that runs now, from any thread: it raises `CancelledError`. No step, no effect.

        Args:
            sequence: only if this one is being stepped.
        """
        with self._step_lock:
            if sequence in self._stepping if sequence is not None else self._stepping:
                lib.pykvq_engine_cancel(self._handle, True)

    @property
    def stats(self) -> Stats:
        """What the engine has done so far."""
        raw = ffi.new("pykvq_engine_stats *")
        with self.use() as handle:
            check(lib.pykvq_engine_get_stats(handle, raw))
        return _record(Stats, raw)

    def close(self) -> None:
        """Close the engine and its sequences. A step in another thread is cancelled and waited for."""
        if self._handle is None:
            return
        self._is_closing = True
        self.cancel()
        with self._lock:
            for sequence in list(self._sequences):
                sequence.close()
            handle, self._handle = self._handle, None
            if handle is not None:
                lib.pykvq_engine_destroy(handle)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Engine on {self.model!r}: {self.plan.n_seq} x {self.plan.n_ctx} tokens>"


class Sequence:
    """One timeline of tokens on an engine, from `Engine.sequence`. A context manager; closing twice is fine.

    A token is first pending, then cached: `sync` and `push` make tokens pending, `Engine.step` feeds them.
    """

    _handle: Any = None

    def __init__(self, engine: Engine, handle: Any) -> None:
        self.engine = engine  # stays alive as long as the sequence
        self._handle = handle

    @property
    def handle(self) -> Any:
        """The C object."""
        if self._handle is None:
            raise ArgumentError("sequence: it is closed")
        return self._handle

    def sync(self, tokens: Iterable[int]) -> int:
        """Become these tokens: the longest prefix that is cached is kept, the rest is pending.

        At least the last token is fed again, so that its logits exist.

        Returns:
            how many tokens need no feeding.

        Raises:
            ArgumentError: no token, or one that is not in the vocabulary.
            FullError: more tokens than the context holds.
        """
        n_reused = ffi.new("uint32_t *")
        with self.engine.use():
            check(lib.pykvq_seq_sync(self.handle, *_token_array(tokens), n_reused))
        return int(n_reused[0])

    def push(self, tokens: Iterable[int]) -> None:
        """Append pending tokens.

        Raises:
            ArgumentError: a token is not in the vocabulary.
            FullError: more tokens than the context holds.
        """
        with self.engine.use():
            check(lib.pykvq_seq_push(self.handle, *_token_array(tokens)))

    def rewind(self, n_tokens: int) -> None:
        """Keep the first `n_tokens`. What lies in an encoded tile that is cut becomes pending."""
        if not 0 <= n_tokens <= len(self):
            raise ArgumentError(f"rewind: {n_tokens} tokens asked for, the sequence has {len(self)}")
        with self.engine.use():
            check(lib.pykvq_seq_rewind(self.handle, n_tokens))

    def fork(self) -> Sequence:
        """A copy that shares cache pages with this sequence until either writes.

        Raises:
            FullError: the pool has no room for one more sequence.
        """
        out = ffi.new("pykvq_seq **")
        with self.engine.use():
            check(lib.pykvq_seq_fork(self.handle, out))
            return self.engine.adopt(out[0])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokens and cache to a file, complete or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        with self.engine.use():
            check(lib.pykvq_seq_save(self.handle, path_bytes(path)))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Become what `save` wrote; the next logits are bit-identical. On failure the sequence stays as it was.

        Raises:
            FileError: the file cannot be read.
            FormatError: it is no saved sequence, or damaged.
            ArgumentError: it was saved with another model or other KV settings.
            UnsupportedError: it was saved in another version of the format.
            FullError: it holds more tokens than the context.
        """
        with self.engine.use():
            check(lib.pykvq_seq_load(self.handle, path_bytes(path)))

    @property
    def tokens(self) -> list[int]:
        """The tokens, cached and pending."""
        with self.engine.use():
            n = lib.pykvq_seq_n_tokens(self.handle)
            out = ffi.new("int32_t[]", n)
            check(lib.pykvq_seq_tokens(self.handle, out, n))
        return ffi.unpack(out, n)

    def __len__(self) -> int:
        """Tokens, cached and pending."""
        return int(lib.pykvq_seq_n_tokens(self.handle))

    @property
    def n_pending(self) -> int:
        """Tokens that wait to be fed."""
        return int(lib.pykvq_seq_n_pending(self.handle))

    @property
    def n_draft(self) -> int:
        """Tokens that the next step may feed as a draft: taking them back leaves no trace, and on the CPU each has the
        logits, bit for bit, that it would have if it were fed alone. At most 16 and `plan.n_logits`."""
        return int(lib.pykvq_seq_n_draft(self.handle))

    @property
    def n_kv_bytes(self) -> int:
        """Bytes of the cache pages it holds; shared pages count in each sequence."""
        return int(lib.pykvq_seq_kv_bytes(self.handle))

    def kv_layers(self) -> list[KVLayer]:
        """What each layer's cache is and takes now, first layer first."""
        layers: list[KVLayer] = []
        raw = ffi.new("pykvq_kv_layer *")
        with self.engine.use():
            for i in range(self.engine.model.info.n_layer):
                check(lib.pykvq_seq_kv_layer(self.handle, i, raw))
                sizes = {name: int(getattr(raw, name)) for name in KVLayer.__annotations__ if name.startswith("n_")}
                layers.append(KVLayer(text(raw.type_k), text(raw.type_v), **sizes))
        return layers

    def keep_logits(self, *, all_tokens: bool) -> None:
        """Keep the logits of every token fed from now on, or only of the last one (as a new sequence does).

        Raises:
            ArgumentError: the engine's `logits` option is too small.
        """
        with self.engine.use():
            check(lib.pykvq_seq_keep_logits(self.handle, all_tokens))

    def logits(self) -> npt.NDArray[np.float32]:
        """The logits kept from the engine's last step: (n_rows, n_vocab) float32, oldest token first.

        No rows if that step did not feed this sequence.
        """
        with self.engine.use():
            return self._copy_logits(0, self.n_logits)

    def logits_row(self, row: int = -1) -> npt.NDArray[np.float32]:
        """One row of `logits`: (n_vocab) float32.

        Raises:
            ArgumentError: there is no such row.
        """
        with self.engine.use():
            n = self.n_logits
            if not -n <= row < n:
                raise ArgumentError(f"sequence: logit row {row} asked for, the last step kept {n}")
            return self._copy_logits(row % n, 1)[0]

    def _copy_logits(self, first: int, n_rows: int) -> npt.NDArray[np.float32]:
        import numpy as np

        rows = np.empty((n_rows, self.engine.model.info.n_vocab), np.float32)
        check(lib.pykvq_seq_logits(self.handle, first, n_rows, ffi.from_buffer("float[]", rows, require_writable=True)))
        return rows

    @property
    def n_logits(self) -> int:
        """Rows of `logits` now."""
        return int(lib.pykvq_seq_n_logits(self.handle))

    def top_logprobs(self, n: int, row: int = -1) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The likeliest tokens after a row of `logits`, likeliest first, and their natural log-probabilities.

        The model's own: before penalties, temperature and filters.

        Args:
            n: how many.
            row: of `logits`; -1: the last.

        Returns:
            tokens (n) int64, log-probabilities (n) float32.

        Raises:
            ArgumentError: there are no such logits, or n is not 1 to n_vocab.
        """
        import numpy as np

        logits = self.logits_row(row)
        if not 1 <= n <= len(logits):
            raise ArgumentError(f"top_logprobs: {n} asked for, expected 1 to {len(logits)}")
        top = np.argpartition(logits, -n)[-n:]
        top = top[np.lexsort((top, -logits[top]))]
        return top, logits[top] - log_sum_exp(logits)

    def sample(self, sampler: Sampler, row: int = -1) -> int:
        """Draw a token from the last logits; the tokens before are the history that penalties see.

        Args:
            row: of `logits`; -1: the last.

        Raises:
            ArgumentError: there are no such logits, since tokens are pending or none was fed.
            NumericError: a logit is not finite.
        """
        token = ffi.new("int32_t *")
        with self.engine.use():
            check(lib.pykvq_seq_sample(self.handle, row, sampler.handle, token))
        return int(token[0])

    def close(self) -> None:
        """Give its pages back to the pool."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self.engine.drop(handle)

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def log_sum_exp(logits: npt.NDArray[np.float32]) -> float:
    """log(sum(exp(logits)))."""
    import numpy as np

    top = float(logits.max())
    return top + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))


def _params(model: Model, options: EngineOptions) -> tuple[Any, list[Any]]:
    """The pykvq_engine_params of some options, and the strings that they point to."""
    if options.get("device") in ("cuda", "auto"):
        load_cublas()
    params = ffi.new("pykvq_engine_params *")
    params.size = ffi.sizeof("pykvq_engine_params")
    params.n_ctx = min(DEFAULT_CTX, model.info.n_ctx_train)
    params.kv_sink = params.kv_tail = -1
    strings: list[Any] = []
    for option, value in options.items():
        if option not in _FIELDS:
            raise TypeError(f"engine: unknown option {option!r}; there are {', '.join(_FIELDS)}")
        if value is None:
            continue
        if isinstance(value, str):
            value = ffi.new("char[]", value.encode())
            strings.append(value)
        try:
            setattr(params, _FIELDS[option], value)
        except OverflowError:
            raise ArgumentError(f"engine: {option}={value} is out of range") from None
    return params, strings


def _token_array(tokens: Iterable[int]) -> tuple[Any, int]:
    values = list(tokens)
    try:
        return ffi.new("int32_t[]", values), len(values)
    except OverflowError:
        raise ArgumentError("tokens: an id is not a 32-bit integer") from None


def _record(kind: Any, raw: Any) -> Any:
    """A dataclass from the C struct with the same members."""
    return kind(**{name: getattr(raw, name) for name in kind.__annotations__})
