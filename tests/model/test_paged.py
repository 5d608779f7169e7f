"""The model over a paged cache gives what the model gives: all golden prompts together, in pieces, through graphs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .geometries import models, tokens
from .golden import CASES, TOLERANCE, load_model, load_prompts, max_error
from .paged_run import Server


@pytest.mark.parametrize(("chunk", "apart"), [(512, 0), (8, 1)])
@pytest.mark.parametrize("case", CASES)
def test_golden_prompts_together(case: str, chunk: int, apart: int) -> None:
    """All at once, and one after the other: steps of every size between 1 and all."""
    prompts = load_prompts(case)
    run = Server(load_model(case), len(prompts)).run([ids.tolist() for ids, _, _ in prompts], 24, chunk, apart)
    for (_, logits, greedy), last, out in zip(prompts, run.logits, run.tokens, strict=True):
        assert max_error(last, logits[-1]) <= TOLERANCE
        assert out == greedy.tolist()


@pytest.mark.slow
def test_golden_prompts_through_inductor() -> None:
    prompts = load_prompts("hybrid")
    server = Server(load_model("hybrid"), len(prompts), "inductor")
    run = server.run([ids.tolist() for ids, _, _ in prompts], 24)
    assert run.tokens == [greedy.tolist() for _, _, greedy in prompts]


@given(data=st.data())
@settings(max_examples=15)
def test_paged_equals_the_model(data: st.DataObject) -> None:
    """float64: any layer mix, window and piece size; the model's own forward over the whole text is the reference."""
    model = data.draw(models())
    prompts = [tokens(data.draw).tolist() for _ in range(data.draw(st.integers(1, 3)))]
    run = Server(model, len(prompts)).run(prompts, 3, data.draw(st.integers(1, 25)), data.draw(st.integers(0, 1)))
    for prompt, last, out in zip(prompts, run.logits, run.tokens, strict=True):
        with torch.no_grad():
            whole = model(torch.tensor([prompt + out[:-1]])).logits[0, len(prompt) - 1 :]
        torch.testing.assert_close(last, whole[0], rtol=1e-9, atol=1e-9)
        assert out == whole.argmax(-1).tolist()
