"""Samplers: logits to a token."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from ._ffi import check, ffi, lib

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Sampler:
    """Draws tokens from logits: top-k, top-p and min-p filters, then temperature.

    The same seed, model, parameters and backend give the same tokens.

    Args:
        temp: temperature; 0 takes the most likely token (greedy).
        top_k: keep the k most likely tokens; 0: off.
        top_p: keep the most likely tokens that together hold this probability; 1: off.
        min_p: drop tokens less likely than this fraction of the most likely one; 0: off.
        seed: of the random numbers; None draws one, which `seed` then tells.

    Raises:
        ArgumentError: a parameter is out of its range.
    """

    def __init__(
        self,
        temp: float = 0.2,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int | None = None,
    ) -> None:
        self._handle: Any = None
        self.seed = secrets.randbits(32) if seed is None else seed
        params = ffi.new("pykvq_sampler_params *")
        params.size = ffi.sizeof("pykvq_sampler_params")
        params.temp, params.top_k, params.top_p, params.min_p = temp, top_k, top_p, min_p
        params.seed = self.seed % 2**64
        out = ffi.new("pykvq_sampler **")
        check(lib.pykvq_sampler_create(params, out))
        self._handle = ffi.gc(out[0], lib.pykvq_sampler_destroy)

    @property
    def handle(self) -> Any:
        """The C object."""
        return self._handle

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        """Draw a token.

        Args:
            logits: (n_vocab) float32.

        Raises:
            NumericError: a logit is not finite.
        """
        import numpy as np

        row = np.ascontiguousarray(logits, np.float32).reshape(-1)
        token = ffi.new("int32_t *")
        check(lib.pykvq_sampler_sample(self._handle, ffi.from_buffer("float[]", row), row.size, token))
        return int(token[0])
