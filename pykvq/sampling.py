"""Samplers: logits to a token."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ._ffi import check, ffi, lib
from .errors import ArgumentError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .tokenizer import Tokenizer

DRY_BREAKERS = ("\n", ":", '"', "*")  # texts that a repetition usually does not go across


class Sampler:
    """Draws tokens from logits.

    The order: logit bias, repetition penalties, DRY, top-n-sigma, top-k, typical, top-p, min-p, XTC, temperature, draw.
    Penalties and DRY see the prompt and the answer so far. The same seed, model, parameters and backend give the same
    tokens.

    Args:
        temp: temperature; 0 takes the most likely token (greedy).
        top_k: keep the k most likely tokens; 0: off.
        top_p: keep the most likely tokens that together hold this probability; 1: off.
        min_p: drop tokens less likely than this fraction of the most likely one; 0: off.
        seed: of the random numbers; None draws one, which `seed` then tells.
        temp_range: the temperature goes from temp - temp_range, where the model is certain, to temp + temp_range, where
            all tokens are as likely; 0: off.
        temp_exponent: how it follows the entropy between the two.
        typical_p: keep the most typical tokens that together hold this probability; 1: off.
        top_n_sigma: drop tokens whose logit is more than so many standard deviations below the highest; 0: off.
        xtc_probability: how often XTC drops all but the least likely of the tokens that reach its threshold; 0: off.
        xtc_threshold: a probability; above 0.5 it has no effect.
        repeat_penalty: divides the positive logits of tokens seen before, multiplies the negative ones; 1: off.
        frequency_penalty: subtracted from a logit as often as the token was seen; 0: off.
        presence_penalty: subtracted once from the logits of tokens seen before; 0: off.
        penalty_last_n: tokens that these three look back; -1: all.
        dry_multiplier: DRY subtracts multiplier * base ** (length - allowed length) from the token that would continue
            a repetition of that length; 0: off.
        dry_base: see there.
        dry_allowed_length: tokens that may be repeated.
        dry_last_n: tokens that DRY looks back; -1: all.
        dry_breakers: tokens that no repetition goes across, see `tokens_with`.
        mirostat: 1 or 2, this version of mirostat takes the place of the filters from top-n-sigma to XTC; 0: off.
        mirostat_tau: the surprise to aim at, bits per token.
        mirostat_eta: how fast mirostat learns.
        logit_bias: added to the logits of these tokens; -inf: never draw it.

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
        *,
        temp_range: float = 0.0,
        temp_exponent: float = 1.0,
        typical_p: float = 1.0,
        top_n_sigma: float = 0.0,
        xtc_probability: float = 0.0,
        xtc_threshold: float = 0.1,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        penalty_last_n: int = 64,
        dry_multiplier: float = 0.0,
        dry_base: float = 1.75,
        dry_allowed_length: int = 2,
        dry_last_n: int = -1,
        dry_breakers: Iterable[int] = (),
        mirostat: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        logit_bias: Mapping[int, float] | None = None,
    ) -> None:
        self._handle: Any = None
        self.seed = secrets.randbits(32) if seed is None else seed
        breakers, bias = list(dry_breakers), dict(logit_bias or {})
        members = {
            "temp": temp,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": self.seed % 2**64,
            "temp_range": temp_range,
            "temp_exponent": temp_exponent,
            "typical_p": typical_p,
            "top_n_sigma": top_n_sigma,
            "xtc_probability": xtc_probability,
            "xtc_threshold": xtc_threshold,
            "repeat_penalty": repeat_penalty,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "penalty_last_n": penalty_last_n,
            "dry_multiplier": dry_multiplier,
            "dry_base": dry_base,
            "dry_allowed_length": dry_allowed_length,
            "dry_last_n": dry_last_n,
            "mirostat": mirostat,
            "mirostat_tau": mirostat_tau,
            "mirostat_eta": mirostat_eta,
        }
        params = ffi.new("pykvq_sampler_params *", {"size": ffi.sizeof("pykvq_sampler_params")})
        for name, value in members.items():
            try:
                setattr(params, name, value)
            except OverflowError:
                raise ArgumentError(f"sampler: {name}={value} is out of range") from None
        arrays = _array("int32_t[]", breakers), _array("int32_t[]", list(bias)), _array("float[]", list(bias.values()))
        params.dry_breakers, params.bias_tokens, params.bias = arrays
        params.n_dry_breakers, params.n_bias = len(breakers), len(bias)
        out = ffi.new("pykvq_sampler **")
        check(lib.pykvq_sampler_create(params, out))
        self._handle = ffi.gc(out[0], lib.pykvq_sampler_destroy)

    @property
    def handle(self) -> Any:
        """The C object."""
        return self._handle

    def allow(self, mask: npt.NDArray[np.uint32] | None) -> None:
        """From now on draw only tokens whose bit is set; None: any token.

        Args:
            mask: (n_words) bit t % 32 of word t // 32 is token t.
        """
        if mask is None:
            check(lib.pykvq_sampler_allow(self._handle, ffi.NULL, 0))
            return
        import numpy as np

        words = np.ascontiguousarray(mask, np.uint32).reshape(-1)
        check(lib.pykvq_sampler_allow(self._handle, ffi.from_buffer("uint32_t[]", words), words.size))

    def sample(self, logits: npt.NDArray[np.float32], history: Iterable[int] = ()) -> int:
        """Draw a token.

        Args:
            logits: (n_vocab) float32.
            history: the tokens before, for penalties and DRY.

        Raises:
            NumericError: a logit is not finite.
        """
        import numpy as np

        row = np.ascontiguousarray(logits, np.float32).reshape(-1)
        seen = list(history)
        token = ffi.new("int32_t *")
        check(
            lib.pykvq_sampler_sample(
                self._handle, ffi.from_buffer("float[]", row), row.size, _array("int32_t[]", seen), len(seen), token
            )
        )
        return int(token[0])


# The options that text can set, with their defaults
SETTINGS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(Sampler).parameters.items()
    if name in ("seed", "logit_bias") or isinstance(parameter.default, int | float)
}


def read_setting(name: str, text: str) -> Any:
    """The value of an option of `Sampler` that was written as text; a logit bias as TOKEN:BIAS,TOKEN:BIAS.

    Raises:
        ArgumentError: there is no such option, or the text is no value of it.
    """
    if name not in SETTINGS:
        near = get_close_matches(name, SETTINGS, 1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(SETTINGS)}"
        raise ArgumentError(f"{name}: no such setting of the sampler; {meant}")
    if name == "logit_bias":
        return _read_bias(text)
    is_real = isinstance(SETTINGS[name], float)
    try:
        return float(text) if is_real else int(text)
    except ValueError:
        raise ArgumentError(f"{name}: {text!r} is not a {'' if is_real else 'whole '}number") from None


def _read_bias(text: str) -> dict[int, float]:
    try:
        pairs = (part.split(":") for part in text.split(",") if part)
        return {int(token): float(bias) for token, bias in pairs}
    except ValueError:
        raise ArgumentError(f"logit_bias: {text!r}, expected TOKEN:BIAS,TOKEN:BIAS") from None


def make_sampler(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> Sampler:
    """A sampler with these options; DRY gets its usual breakers."""
    breakers = tokens_with(tokenizer) if settings.get("dry_multiplier") else []
    return Sampler(**settings, dry_breakers=breakers)


def tokens_with(tokenizer: Tokenizer, texts: Iterable[str] = DRY_BREAKERS) -> list[int]:
    """The tokens whose text contains one of these texts, for `Sampler(dry_breakers=...)`."""
    wanted = [text.encode() for text in texts]
    pieces = (tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab))
    return [i for i, piece in enumerate(pieces) if any(text in piece for text in wanted)]


def _array(kind: str, values: list[Any]) -> Any:
    try:
        return ffi.new(kind, values)
    except OverflowError:
        raise ArgumentError("sampler: a token id is not a 32-bit integer") from None
