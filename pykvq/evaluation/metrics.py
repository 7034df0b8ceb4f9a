"""How far logits are from those of an f16 cache, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import NumericError

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_ROWS = 16  # of logits at a time: float64 copies of whole chunks would not fit a small machine


def log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    """(n_rows, n_vocab) float64.

    Raises:
        NumericError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise NumericError("logits: not finite")
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


class Divergence:
    """Compares tokens one by one with the reference; keeps a few numbers of each."""

    def __init__(self) -> None:
        self._parts: list[Floats] = []  # (5, n_tokens): KL divergence, same top, both losses, probability difference

    def add(self, reference: npt.NDArray[np.float32], logits: npt.NDArray[np.float32], targets: list[int]) -> None:
        """Score tokens: the logits (n_tokens, n_vocab) of both caches, and the tokens that came next.

        Raises:
            NumericError: a logit is not finite.
        """
        for i in range(0, len(targets), _ROWS):
            p, q = log_softmax(reference[i : i + _ROWS]), log_softmax(logits[i : i + _ROWS])
            rows, target = np.arange(len(p)), targets[i : i + _ROWS]
            loss_p, loss_q = -p[rows, target], -q[rows, target]
            same_top = p.argmax(axis=1) == q.argmax(axis=1)
            kl = (np.exp(p) * (p - q)).sum(axis=1).clip(0)  # rounding may leave -1e-17
            self._parts.append(np.stack([kl, same_top, loss_p, loss_q, np.exp(-loss_q) - np.exp(-loss_p)]))

    def summary(self) -> dict[str, float]:
        """The figures of all tokens so far; `_error` is a standard error."""
        kl, same_top, loss_p, loss_q, difference = np.concatenate(self._parts, axis=1)
        ratio = float(np.exp((loss_q - loss_p).mean()))
        return {
            "n_tokens": len(kl),
            "mean_kl": float(kl.mean()),
            "mean_kl_error": _standard_error(kl),
            "median_kl": float(np.median(kl)),
            "kl_99": float(np.quantile(kl, 0.99)),
            "kl_99.9": float(np.quantile(kl, 0.999)),
            "max_kl": float(kl.max()),
            "above_1e-3": float((kl > 1e-3).mean()),
            "same_top": float(same_top.mean()),
            "same_top_error": _standard_error(same_top),
            "perplexity_f16": float(np.exp(loss_p.mean())),
            "perplexity": float(np.exp(loss_q.mean())),
            "perplexity_ratio": ratio,
            "perplexity_ratio_error": ratio * _standard_error(loss_q - loss_p),
            "rms_probability_difference": float(np.sqrt((difference**2).mean())),
        }


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
