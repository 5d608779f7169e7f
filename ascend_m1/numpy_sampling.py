"""transformers' rules for choosing a token, in NumPy, for models that are not PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import GenerationConfig

from .errors import CheckpointError


def choose(logits: Any, seen: Any, config: GenerationConfig, random: np.random.Generator) -> int:
    """The next token.

    Args:
        logits: float [vocab].
        seen: int [tokens], the prompt and what was generated.
        config: from ``SamplingOptions.resolve``.
        random: what sampling draws from.

    Raises:
        CheckpointError: a logit is NaN, or the largest is infinite.
    """
    scores = penalised(logits, seen, config.repetition_penalty)
    if not np.isfinite(scores.max()):  # NaN, if one is among them
        raise CheckpointError("the model computes NaN or infinity: try --dtype float32; if it stays, copy the weights "
                              "again")  # fmt: skip
    if not config.do_sample:
        return int(scores.argmax())
    return int(random.choice(len(scores), p=probabilities(scores, config)))


def penalised(logits: Any, seen: Any, penalty: float | None) -> Any:
    """float64 [vocab]; tokens that were seen are made less likely, if the penalty is above 1."""
    scores = np.asarray(logits, dtype=np.float64).copy()
    if penalty is not None and penalty != 1:
        seen = np.unique(seen)
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def probabilities(scores: Any, config: GenerationConfig) -> Any:
    """float64 [vocab], from which to draw: temperature, top_k, top_p and min_p, each on what the one before left."""
    scores = scores / (config.temperature or 1.0)
    if config.top_k:
        kept = min(config.top_k, len(scores))
        scores = np.where(scores < np.partition(scores, -kept)[-kept], -np.inf, scores)
    if config.top_p is not None and config.top_p < 1:
        ascending = np.argsort(scores, kind="stable")
        below = np.cumsum(softmax(scores)[ascending])  # of each token and all less likely ones
        unlikely = ascending[:-1][below[:-1] <= 1 - config.top_p]  # the likeliest stays
        scores[unlikely] = -np.inf
    chances = softmax(scores)
    if config.min_p:
        chances = np.where(chances < config.min_p * chances.max(), 0.0, chances)
    return chances / chances.sum()


def softmax(scores: Any) -> Any:
    """Of float64 [vocab]."""
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()
