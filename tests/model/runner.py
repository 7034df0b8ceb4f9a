"""Run a GGUF file through the C API alone: what the architecture tests drive, below the Python classes."""

from pathlib import Path

import numpy as np

from pykvq._native import ffi, lib


class Runner:
    """A model, an engine and one sequence of it that keeps all logits."""

    def __init__(self, path: Path, n_ctx: int = 256, n_batch: int = 256, n_threads: int = 2) -> None:
        self.model = self._made("pykvq_model **", lambda out: lib.pykvq_model_open(str(path).encode(), out))
        params = ffi.new("pykvq_engine_params *")
        params.size = ffi.sizeof("pykvq_engine_params")
        params.n_ctx, params.n_seq, params.n_batch, params.n_logits = n_ctx, 1, n_batch, n_batch
        params.n_threads, params.kv_sink, params.kv_tail = n_threads, -1, -1
        self.engine = self._made("pykvq_engine **", lambda out: lib.pykvq_engine_create(self.model, params, out))
        self.seq = self._made("pykvq_seq **", lambda out: lib.pykvq_seq_create(self.engine, out))
        self._check(lib.pykvq_seq_keep_logits(self.seq, True))
        info = ffi.new("pykvq_model_info *")
        lib.pykvq_model_get_info(self.model, info)
        self.info = info

    def close(self) -> None:
        lib.pykvq_engine_destroy(self.engine)
        lib.pykvq_model_close(self.model)

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def logits(self, tokens: list[int], chunk: int) -> np.ndarray:
        """(n_tokens, n_vocab) of the text fed from its beginning, chunk tokens a step."""
        self._check(lib.pykvq_seq_rewind(self.seq, 0))
        parts = []
        for first in range(0, len(tokens), chunk):
            part = tokens[first : first + chunk]
            self._check(lib.pykvq_seq_push(self.seq, ffi.new("int32_t[]", part), len(part)))
            self._check(lib.pykvq_engine_step(self.engine, ffi.new("pykvq_seq *[]", [self.seq]), 1))
            assert lib.pykvq_seq_n_pending(self.seq) == 0
            parts.append(self._kept_logits(len(part)))
        return np.concatenate(parts)

    def _kept_logits(self, n_rows: int) -> np.ndarray:
        assert lib.pykvq_seq_n_logits(self.seq) == n_rows
        out = np.empty((n_rows, self.info.n_vocab), np.float32)
        self._check(lib.pykvq_seq_logits(self.seq, 0, n_rows, ffi.cast("float *", out.ctypes.data)))
        return out

    def _made(self, kind: str, make):
        out = ffi.new(kind)
        self._check(make(out))
        return out[0]

    @staticmethod
    def _check(status: int) -> None:
        if status != lib.PYKVQ_OK:
            raise RuntimeError(ffi.string(lib.pykvq_last_error()).decode())
