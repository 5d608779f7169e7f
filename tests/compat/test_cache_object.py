"""M1Cache as a value: passed under either name, copied, pickled, and never shared by accident."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

from ascend_m1 import M1Cache

from .small import WINDOW, ids, left_padded, model

NAMES = ("cache", "past_key_values")
EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base", [True, False])
def test_both_argument_names_fill_and_return_the_cache(name: str, base: bool) -> None:
    lm = model()
    network, prompt = lm.model if base else lm, ids(9)[0]
    cache = M1Cache(lm.config)
    with torch.no_grad():
        whole = network(prompt, use_cache=False)[0]
        first = network(prompt[:, :5], **{name: cache})
        second = network(prompt[:, 5:], **{name: cache})
    assert (first.get("cache") or first.get("past_key_values")) is cache
    assert cache.get_seq_length() == 9
    torch.testing.assert_close(torch.cat([first[0], second[0]], dim=1), whole, **EXACT)


def test_the_output_names_the_cache_as_this_transformers_does() -> None:
    field = next(name for name in NAMES if name in BaseModelOutputWithPast.__dataclass_fields__)
    lm = model()
    for network in (lm, lm.model):
        assert isinstance(network(ids(3)[0])[field], M1Cache)
        assert network(ids(3)[0], use_cache=False).get(field) is None


def copied(cache: M1Cache) -> M1Cache:
    return copy.deepcopy(cache)


def pickled(cache: M1Cache) -> M1Cache:
    restored: M1Cache = pickle.loads(pickle.dumps(cache))
    return restored


@pytest.mark.parametrize("duplicate", [copied, pickled])
@pytest.mark.parametrize("max_length", [None, 64])
def test_a_copy_continues_alone(duplicate: Callable[[M1Cache], M1Cache], max_length: int | None) -> None:
    lm, inputs = model(), left_padded(ids(WINDOW + 5, 2))
    cache = M1Cache(lm.config, max_length=max_length)
    one, other = ids(4, 4)
    with torch.no_grad():
        lm(**inputs, cache=cache)
        twin = duplicate(cache)
        expected = lm(one.expand(2, -1), cache=cache).logits
        lm(other.expand(2, -1), cache=duplicate(twin))  # and its copies leave the twin alone
        actual = lm(one.expand(2, -1), cache=twin).logits
    assert torch.equal(actual, expected)
    assert twin.get_seq_length() == cache.get_seq_length()


def test_another_models_cache_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DynamicCache.*M1Cache"):
        model()(ids(3)[0], past_key_values=DynamicCache())


def test_generate_still_has_the_hook_that_makes_the_cache() -> None:
    """The hook is private: a version without it would fall back on a cache that cannot hold the convolution."""
    parameters: dict[str, Any] = dict(inspect.signature(GenerationMixin._prepare_cache_for_generation).parameters)
    expected = ["self", "generation_config", "model_kwargs", "generation_mode", "batch_size", "max_cache_length"]
    assert list(parameters) == expected
