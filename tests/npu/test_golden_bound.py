"""The bound on 16-bit logits can fail: it notices what is wrong in one layer only, and by little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ascend_m1 import BaichuanM1ForCausalLM

from .golden import LOW_PRECISION, along_the_golden, assert_as_near, exact_logits, load, load_prompts


def wider_window(lm: BaichuanM1ForCausalLM) -> None:
    attention = lm.model.layers[1].self_attn
    attention.spec = replace(attention.spec, window=attention.spec.window + 1)


def larger_tap(lm: BaichuanM1ForCausalLM) -> None:
    lm.model.layers[0].self_attn.conv_v.data[..., 0] *= 1.1


def exchanged_taps(lm: BaichuanM1ForCausalLM) -> None:
    taps = lm.model.layers[0].self_attn.conv_k.data
    taps.copy_(taps.flip(-1))


def nothing(lm: BaichuanM1ForCausalLM) -> None:
    """So that it is the fault which is noticed."""


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
@pytest.mark.parametrize("fault", [nothing, wider_window, larger_tap, exchanged_taps])
@pytest.mark.parametrize("case", ["hybrid", "published-ratio"])
def test_a_fault_in_one_layer_is_noticed(
    case: str, fault: Callable[[BaichuanM1ForCausalLM], None], dtype: torch.dtype
) -> None:
    """In a whole text, and in decode steps along the golden tokens."""
    ids, _, greedy = load_prompts(case)[-1]
    text = torch.cat([ids, greedy])
    exact = exact_logits(case, text)
    spoilt, reference = load.__wrapped__(case, dtype), load(case, dtype, "cpu")
    fault(spoilt)
    with torch.inference_mode():
        whole = [[lm(text[None].to(lm.device)).logits[0]] for lm in (spoilt, reference)]
        decoded = [along_the_golden(lm, [ids], [greedy]) for lm in (spoilt, reference)]
    for got, right in ((whole, exact), (decoded, exact[-1 - len(greedy) : -1])):
        if fault is nothing:
            assert_as_near(*got, [right])
        else:
            with pytest.raises(AssertionError, match="as far from float32"):
                assert_as_near(*got, [right])
