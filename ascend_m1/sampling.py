"""How to choose tokens: what a user gives, what a checkpoint's generation_config.json says, and their checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from transformers import GenerationConfig

from .errors import InputError

DEFAULT_MAX_NEW_TOKENS = 512
# The rest of a generation_config.json asks for methods and outputs that make no stream of text.
_HONOURED = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_new_tokens", "repetition_penalty"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p"),
)


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens. None: as the checkpoint's generation_config.json says, else greedy and unlimited.

    Attributes:
        max_new_tokens: the most tokens to generate; the context's end stops earlier.
        do_sample: sample even if no other option asks for it.
        temperature: 0 is greedy; above 0 samples.
        top_k: sample among the k likeliest tokens; 0: all.
        top_p: sample among the likeliest tokens that together have this probability.
        min_p: leave out tokens below this share of the likeliest one's probability.
        repetition_penalty: above 1 makes tokens that already occurred less likely.
        num_beams: sequences of a beam search; 1: none.
        seed: makes sampling repeatable.
    """

    max_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("max_new_tokens", self.max_new_tokens, lambda x: 1 <= x < 2**31, "1 or more", int)
        _require("temperature", self.temperature, lambda x: x == 0 or 1e-3 <= x < 1e6, "0 (greedy) or 0.001 and more")
        _require("top_k", self.top_k, lambda x: 0 <= x < 2**31, "0 (off) or more", int)
        _require("top_p", self.top_p, lambda x: 0 < x <= 1, "a number above 0, at most 1")
        _require("min_p", self.min_p, lambda x: 0 <= x <= 1, "a number from 0 to 1")
        _require(
            "repetition_penalty", self.repetition_penalty, lambda x: x >= 1e-3, "a finite number from 0.001 (1 is off)"
        )
        _require("num_beams", self.num_beams, lambda x: 1 <= x <= 64, "1 to 64", int)
        _require("seed", self.seed, lambda x: 0 <= x < 2**63, "a whole number from 0 to 2^63 - 1", int)
        if self.do_sample and self.temperature == 0:
            raise InputError("temperature=0 is greedy and do_sample samples: give one of them")

    def resolve(self, base: GenerationConfig, room: int, end: int | None = None) -> GenerationConfig:
        """transformers' options: these, then the checkpoint's, with at most ``room`` new tokens.

        Args:
            end: the tokenizer's end token, where the checkpoint names none.
        """
        config = honoured(base)
        if config.eos_token_id is None:
            config.eos_token_id = end
        wanted = self.max_new_tokens or base.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        config.max_new_tokens, config.max_length = min(wanted, room), None
        asked = self.do_sample or any(x is not None for x in (self.temperature, self.top_k, self.top_p, self.min_p))
        config.do_sample = self.temperature != 0 and bool(asked or base.do_sample)
        for name in ("temperature", "top_k", "top_p", "min_p"):
            value = getattr(self, name)
            chosen = getattr(base, name) if value is None else value
            setattr(config, name, chosen if config.do_sample else None)
        if config.do_sample and config.top_k is None:
            config.top_k = 0  # transformers would take 50
        if self.repetition_penalty is not None:
            config.repetition_penalty = self.repetition_penalty
        config.num_beams = self.num_beams
        return config


def honoured(base: GenerationConfig) -> GenerationConfig:
    """What counts of a checkpoint's generation_config.json; transformers fills gaps of a call from the model's own."""
    return GenerationConfig(**{name: getattr(base, name, None) for name in _HONOURED})


def _require(
    name: str,
    value: float | None,
    holds: Callable[[float], bool],
    wanted: str,
    kind: type | tuple[type, ...] = (int, float),
) -> None:
    # The range first: a whole number too large for a float is out of it, NaN is in none.
    if value is not None and not (isinstance(value, kind) and holds(value) and math.isfinite(value)):
        raise InputError(f"{name}={value}: give {wanted}")
