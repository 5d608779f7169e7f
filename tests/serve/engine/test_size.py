"""The memory of an engine, told before it is taken."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascend_m1 import BaichuanM1Config
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import InputError
from ascend_m1_serve.engine import size
from ascend_m1_serve.engine.core import EngineOptions
from ascend_m1_serve.engine.request import blocks_for
from ascend_m1_serve.engine.size import blocks_within, cache_bytes, check_size, limit_product_caches
from ascend_m1_serve.engines import Wanted, built_in

from ...model.golden import load_model
from .run import core_of, greedy
from .test_service import CASE

CPU = torch.device("cpu")


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_as_much_as_is_taken(prefix_caching: bool) -> None:
    model = load_model(CASE)
    options = EngineOptions(300, max_sequences=3, prefix_caching=prefix_caching)
    runner = core_of(model, 300, max_sequences=3, prefix_caching=prefix_caching).runner
    taken = runner.cache.nbytes + (runner.store.nbytes if runner.store else 0)
    assert cache_bytes(model.config, options, runner.cache.layers[0].k.dtype) == taken


@given(st.integers(1, 700), st.integers(1, 5), st.booleans(), st.floats(0, 0.01))
def test_a_cache_of_so_much_memory(length: int, sequences: int, prefix_caching: bool, gib: float) -> None:
    """It is as large as it may be; less than the longest sequence takes is refused, with what it takes."""
    config, dtype = load_model(CASE).config, torch.float32
    options = EngineOptions(length, max_sequences=sequences, prefix_caching=prefix_caching)

    def taken(blocks: int) -> int:
        return cache_bytes(config, replace(options, blocks=blocks), dtype)

    try:
        blocks = blocks_within(config, options, dtype, gib)
    except InputError as error:
        needed = float(str(error).partition(" take ")[2].partition(":")[0])
        assert gib < taken(blocks_for(length)) / 2**30 <= needed + 1e-9
        assert blocks_within(config, options, dtype, needed) >= blocks_for(length)
    else:
        assert blocks >= blocks_for(length)
        assert taken(blocks) <= gib * 2**30 < taken(blocks + 1)


def test_a_service_with_a_small_cache_swaps_and_answers_the_same() -> None:
    prompts = [[1 + (number + i) % 300 for i in range(100)] for number in range(4)]

    def answers(kv_cache_gib: float | None) -> tuple[list[list[int]], int, int]:
        sizes = {"max_length": 256, "max_sequences": 4, "kv_cache_gib": kv_cache_gib}
        core = built_in(Wanted(EMBEDDED, device="cpu", dtype="float32", **sizes)).core  # type: ignore[arg-type]
        return greedy(core, prompts, 40), core.stats().preemptions, core.limits.blocks

    whole, preemptions, blocks = answers(None)
    assert (preemptions, blocks) == (0, 8)
    with pytest.raises(InputError, match=r"^--kv-cache-gib=0\.001: 4 sequences, one of them of 256 t") as told:
        answers(0.001)
    least = float(str(told.value).partition(" take ")[2].partition(":")[0])
    swapped, preemptions, blocks = answers(least)
    assert blocks < 4
    assert preemptions > 0
    assert swapped == whole
    with pytest.raises(InputError, match="--kv-cache-gib=nan: give GiB of memory, more than 0"):
        answers(float("nan"))


@pytest.mark.parametrize(("sequences", "most"), [(1, "72"), (16, "192"), (128, "1024")])
def test_compiled_products_are_limited_unless_somebody_did(
    sequences: int, most: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"LRU_CACHE_CAPACITY": "7"})
    limit_product_caches(sequences)
    assert os.environ == {"LRU_CACHE_CAPACITY": "7", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": most}
    monkeypatch.setattr(os, "environ", {})
    limit_product_caches(sequences)
    assert set(os.environ) == {"LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    assert set(os.environ.values()) == {most}


def test_what_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published geometry: 128 sequences of 32,768 tokens beside 16 of them."""
    monkeypatch.setattr(size, "cpu", lambda: {"memory": 128 * 2**30})
    config = BaichuanM1Config()
    check_size(config, EngineOptions(32768, max_sequences=16), torch.bfloat16, CPU)
    with pytest.raises(InputError, match=r"max_sequences=128, max_length=32768 takes [0-9.]+ GiB and cpu has 128.0: "):
        check_size(config, EngineOptions(32768, max_sequences=128), torch.bfloat16, CPU)
    with pytest.raises(InputError, match="max_sequences=129: the built-in engine runs at most 128"):
        check_size(config, EngineOptions(128, max_sequences=129), torch.bfloat16, CPU)
