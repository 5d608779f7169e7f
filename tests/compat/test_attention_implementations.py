"""attn_implementation, output_attentions and output_hidden_states."""

from __future__ import annotations

import pytest
import torch

from ascend_m1 import M1Cache

from .small import WINDOW, config, ids, left_padded, model


@pytest.mark.parametrize("lengths", [(13,), (1, WINDOW, 19)])
@pytest.mark.parametrize("cached", [True, False])
def test_eager_equals_sdpa(lengths: tuple[int, ...], cached: bool) -> None:
    inputs = left_padded(ids(*lengths))
    logits = []
    for name in ("sdpa", "eager"):
        lm = model(attn_implementation=name)
        assert lm.config._attn_implementation == name
        cache = M1Cache(lm.config) if cached else None
        with torch.no_grad():
            steps = [lm(**inputs, cache=cache, use_cache=cached).logits[inputs["attention_mask"].bool()]]
            for column in range(4 if cached else 0):
                mask = torch.cat([inputs["attention_mask"], torch.ones(len(lengths), column + 1).long()], dim=1)
                steps.append(lm(inputs["input_ids"][:, -1:], attention_mask=mask, cache=cache).logits[:, 0])
        logits.append(torch.cat(steps))
    # eager's softmax is float32, as in transformers' own eager functions
    torch.testing.assert_close(logits[0], logits[1], rtol=0.0, atol=2e-5)


def test_eager_attention_weights_are_distributions_over_visible_keys() -> None:
    lm, prompt = model(attn_implementation="eager"), ids(15)[0]
    attentions = lm(prompt, output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [
        (1, spec.heads, 15, 15) for spec in lm.config.layer_specs
    ]
    distance = torch.arange(15).unsqueeze(1) - torch.arange(15)
    for weights, spec in zip(attentions, lm.config.layer_specs, strict=True):
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0.0, atol=1e-5)
        hidden = (distance < 0) | (distance >= (spec.window or 15))
        assert not weights[..., hidden].any()
        assert (weights[..., ~hidden] > 0).all()


def test_hidden_states_are_the_embedding_and_every_layer() -> None:
    lm, prompt = model(), ids(7)[0]
    output = lm(prompt, output_hidden_states=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(1, 7, 48)] * 5
    assert torch.equal(output.hidden_states[0], lm.get_input_embeddings()(prompt))
    torch.testing.assert_close(lm.lm_head(output.hidden_states[-1]), output.logits)


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "flex_attention", "no_such_attention"])
def test_other_implementations_are_refused_by_name(name: str) -> None:
    with pytest.raises((ValueError, ImportError), match=name.replace("_attention", "").replace("flash_", "")):
        model(attn_implementation=name)


def test_the_default_is_sdpa() -> None:
    assert model().config._attn_implementation == "sdpa"
    assert "attn_implementation" not in config().to_dict()
