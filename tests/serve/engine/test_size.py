"""The memory of an engine, told before it is taken."""

from __future__ import annotations

import pytest
import torch

from ascend_m1 import BaichuanM1Config
from ascend_m1.errors import InputError
from ascend_m1_serve.engine import size
from ascend_m1_serve.engine.core import EngineOptions
from ascend_m1_serve.engine.size import cache_bytes, check_size

from ...model.golden import load_model
from .run import core_of
from .test_service import CASE

CPU = torch.device("cpu")


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_as_much_as_is_taken(prefix_caching: bool) -> None:
    model = load_model(CASE)
    options = EngineOptions(300, max_sequences=3, prefix_caching=prefix_caching)
    runner = core_of(model, 300, max_sequences=3, prefix_caching=prefix_caching).runner
    taken = runner.cache.nbytes + (runner.store.nbytes if runner.store else 0)
    assert cache_bytes(model.config, options, runner.cache.layers[0].k.dtype) == taken


def test_what_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published geometry: 128 sequences of 32,768 tokens beside 16 of them."""
    monkeypatch.setattr(size, "cpu", lambda: {"memory": 128 * 2**30})
    config = BaichuanM1Config()
    check_size(config, EngineOptions(32768, max_sequences=16), torch.bfloat16, CPU)
    with pytest.raises(InputError, match=r"max_sequences=128, max_length=32768 takes [0-9.]+ GB and cpu has 137.4: "):
        check_size(config, EngineOptions(32768, max_sequences=128), torch.bfloat16, CPU)
    with pytest.raises(InputError, match="max_sequences=129: the built-in engine runs at most 128"):
        check_size(config, EngineOptions(128, max_sequences=129), torch.bfloat16, CPU)
