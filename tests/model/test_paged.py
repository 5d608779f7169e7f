"""The model over a paged cache gives what the model gives: all golden prompts together, in pieces, through graphs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_m1.decode import Decoder
from ascend_m1.errors import CacheError, InputError
from ascend_m1.inference import InferenceModel
from ascend_m1.paged import FILLERS, PagedCache
from ascend_m1.steps import Chunk, decode_step, fillers, prefill_step

from .geometries import models, tokens
from .golden import CASES, TOLERANCE, load_model, load_prompts, max_error
from .paged_run import Server


@pytest.mark.parametrize("chunk", [512, 8])
@pytest.mark.parametrize("case", CASES)
def test_golden_prompts_together(case: str, chunk: int) -> None:
    prompts = load_prompts(case)
    run = Server(load_model(case), len(prompts)).run([ids.tolist() for ids, _, _ in prompts], 24, chunk)
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
    run = Server(model, len(prompts)).run(prompts, 3, data.draw(st.integers(1, 25)))
    for prompt, last, out in zip(prompts, run.logits, run.tokens, strict=True):
        with torch.no_grad():
            whole = model(torch.tensor([prompt + out[:-1]])).logits[0, len(prompt) - 1 :]
        torch.testing.assert_close(last, whole[0], rtol=1e-9, atol=1e-9)
        assert out == whole.argmax(-1).tolist()


def test_weights_are_shared() -> None:
    model = load_model("hybrid")
    inference = InferenceModel(model, 16)
    mlp = model.model.layers[0].mlp
    packed = inference.layers[0].gate_up
    assert mlp.gate_proj.weight.data_ptr() == packed.data_ptr()
    assert mlp.up_proj.weight.data_ptr() == packed[mlp.gate_proj.weight.shape[0] :].data_ptr()
    assert inference.layers[0].qkv.data_ptr() == model.model.layers[0].self_attn.W_pack.weight.data_ptr()


def test_errors_say_what_to_do() -> None:
    model = load_model("hybrid")
    cache = PagedCache(model.config, 1, 2, torch.float32, "cpu")
    inference = InferenceModel(model, 256)
    with pytest.raises(CacheError, match="at least one of each"):
        PagedCache(model.config, 0, 2, torch.float32, "cpu")
    with pytest.raises(CacheError, match="200 tokens do not fit into 1 blocks of 128"):
        prefill_step([Chunk(0, [0], 0, [1] * 200)], cache, torch.device("cpu"))
    with pytest.raises(CacheError, match="one token and at most 1 blocks"):
        decode_step([Chunk(0, [0, 1], 3, [1])], cache, 1, torch.device("cpu"))
    with pytest.raises(CacheError, match="at most 128"):
        fillers(FILLERS + 1, cache)
    with pytest.raises(InputError, match="graph 'fast' is not known"):
        Decoder(inference, cache, 2, 256, "fast")
    with pytest.raises(InputError, match="give 1 to 128"):
        Decoder(inference, cache, 0, 256)
    with pytest.raises(InputError, match="2 sequences in a decode step made for 1"):
        Decoder(inference, cache, 1, 256).step([Chunk(0, [0], 1, [1])] * 2)
    with pytest.raises(InputError, match="up to 256 in all, not 1 and 301"):
        Decoder(inference, cache, 1, 256).step([Chunk(0, [0, 1, 0], 300, [1])])
