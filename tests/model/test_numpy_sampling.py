"""The NumPy sampler draws from the distribution that transformers' own processors leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ascend_m1.errors import CheckpointError
from ascend_m1.numpy_sampling import choose, penalised, probabilities
from ascend_m1.sampling import SamplingOptions


def expected(logits: torch.Tensor, seen: list[int], config: GenerationConfig) -> torch.Tensor:
    """In transformers' order, see ``GenerationMixin._get_logits_processor``; in float64, as ours."""
    processors = [RepetitionPenaltyLogitsProcessor(config.repetition_penalty)]
    if config.temperature is not None:
        processors.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        processors.append(TopKLogitsWarper(config.top_k))
    if config.top_p is not None and config.top_p < 1:
        processors.append(TopPLogitsWarper(config.top_p))
    if config.min_p is not None:
        processors.append(MinPLogitsWarper(config.min_p))
    scores, ids = logits[None], torch.tensor([seen])
    for processor in processors:
        scores = processor(ids, scores)
    return scores[0].softmax(-1)


@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 60),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
    temperature=st.none() | st.floats(0.05, 5),
    top_k=st.none() | st.integers(0, 70),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0, 1),
    penalty=st.floats(0.2, 5),
)
@example(seed=0, size=20, spread=3.0, temperature=0.7, top_k=5, top_p=0.6, min_p=0.2, penalty=1.3)
def test_same_probabilities(
    seed: int,
    size: int,
    spread: float,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    penalty: float,
) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, spread, size)  # no two alike: what ties leave depends on the sort
    seen = generator.integers(0, size, 7).tolist()
    options = SamplingOptions(
        do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty
    )
    config = options.resolve(GenerationConfig(), room=100)
    ours = probabilities(penalised(logits, seen, config.repetition_penalty), config)
    np.testing.assert_allclose(ours, expected(torch.from_numpy(logits), seen, config).numpy(), atol=1e-12)


@pytest.mark.parametrize("penalty", [None, 1.5])
def test_greedy_takes_the_likeliest(penalty: float | None) -> None:
    config = SamplingOptions(temperature=0, repetition_penalty=penalty).resolve(GenerationConfig(), room=100)
    chosen = choose(np.array([0.0, 3.0, 2.5, -1.0]), [1, 3], config, np.random.default_rng(0))
    assert chosen == (1 if penalty is None else 2)


def test_draws_follow_the_probabilities() -> None:
    config = SamplingOptions(temperature=1, top_k=2).resolve(GenerationConfig(), room=100)
    random, logits = np.random.default_rng(0), np.log([0.5, 0.375, 0.125])
    draws = [choose(logits, [0], config, random) for _ in range(2000)]
    # Four standard deviations of the count among 2000 draws.
    assert abs(draws.count(0) - 2000 * 0.5 / 0.875) < 4 * (2000 * 0.571 * 0.429) ** 0.5
    assert 2 not in draws


@pytest.mark.parametrize("options", [SamplingOptions(), SamplingOptions(temperature=1)], ids=["greedy", "sampling"])
@pytest.mark.parametrize("logits", [[0.0, np.nan], [np.inf, 1, 2], [-np.inf, -np.inf]], ids=str)
def test_nan_and_infinity_are_refused(options: SamplingOptions, logits: list[float]) -> None:
    config = options.resolve(GenerationConfig(), room=100)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        choose(np.array(logits), [0], config, np.random.default_rng(0))


def test_tokens_that_are_ruled_out_are_not_refused() -> None:
    config = SamplingOptions(temperature=1).resolve(GenerationConfig(), room=100)
    assert choose(np.array([-np.inf, 1.0]), [0], config, np.random.default_rng(0)) == 1
