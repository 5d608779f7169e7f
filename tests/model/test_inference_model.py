"""What an ``InferenceModel`` takes over from a model, and what it refuses."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.errors import InputError
from ascend_m1.inference import InferenceModel
from ascend_m1.paged import PagedCache
from ascend_m1.projection import PackedProjection
from ascend_m1.steps import Chunk, prefill_step

from .golden import ROOT, load_model


def fresh() -> BaichuanM1ForCausalLM:
    """A model that no other test has packed."""
    return BaichuanM1ForCausalLM.from_pretrained(ROOT / "hybrid", dtype=torch.float32).eval()


def test_weights_are_shared() -> None:
    model = fresh()
    inference = InferenceModel(model, 16)
    mlp = model.model.layers[0].mlp
    packed = inference.layers[0].gate_up.weight
    assert mlp.gate_proj.weight.data_ptr() == packed.data_ptr()
    assert mlp.up_proj.weight.data_ptr() == packed[mlp.gate_proj.weight.shape[0] :].data_ptr()
    assert inference.layers[0].qkv.weight.data_ptr() == model.model.layers[0].self_attn.W_pack.weight.data_ptr()


def test_a_second_one_shares_the_packed_matrix() -> None:
    model = fresh()
    separate = [layer.mlp.up_proj.weight.clone() for layer in model.model.layers]
    first, second = InferenceModel(model, 16), InferenceModel(model, 32)
    for layer, a, b, up in zip(model.model.layers, first.layers, second.layers, separate, strict=True):
        assert a.gate_up.weight.data_ptr() == b.gate_up.weight.data_ptr() == layer.mlp.gate_proj.weight.data_ptr()
        assert torch.equal(b.gate_up.weight, torch.cat([layer.mlp.gate_proj.weight, up]))


class Adapted(nn.Module):
    """As peft wraps a layer: the weight of the layer below, and something added to its result."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self.base_layer.weight
        return weight


@pytest.mark.parametrize("name", ["layers.1.self_attn.W_pack", "layers.0.mlp.up_proj", "embed_tokens", "norm"])
def test_adapters_are_refused(name: str) -> None:
    model = fresh()
    model.model.set_submodule(name, Adapted(model.model.get_submodule(name)))
    with pytest.raises(InputError, match=rf"model\.{name} is a .*Adapted: .*merge_and_unload"):
        InferenceModel(model, 16)


def test_a_wrapped_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"model is a .*Adapted"):
        InferenceModel(Adapted(fresh()), 16)  # type: ignore[arg-type]


@torch.no_grad()
def test_no_longer_than_the_tables() -> None:
    model = load_model("hybrid")
    with pytest.raises(InputError, match="max_length=0"):
        InferenceModel(model, 0)
    cache = PagedCache(model.config, 1, 1, torch.float32, "cpu")
    inference = InferenceModel(model, 16)
    assert inference.max_length == 16
    step = prefill_step([Chunk(0, [0], 0, [1] * 16)], cache, torch.device("cpu"))
    assert inference(step, cache).isfinite().all()
    with pytest.raises(InputError, match=r"sequence of 17 tokens: .* max_length=16: "):
        inference(prefill_step([Chunk(0, [0], 16, [1])], cache, torch.device("cpu")), cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights(dtype: torch.dtype) -> None:
    """The same logits up to the order of sums, and nothing of the plain matrices is kept."""
    config = BaichuanM1Config.from_pretrained(ROOT / "hybrid", vocab_size=4096, hidden_size=256, intermediate_size=4096)
    torch.manual_seed(0)
    model = BaichuanM1ForCausalLM(config).to(dtype).eval()
    source = weakref.ref(model.model.layers[0].mlp.down_proj.weight)
    inference = InferenceModel(model, 16)
    plain = prompt_logits(inference)
    inference.pack_weights()
    packed = [name for name, part in inference.named_modules() if isinstance(part, PackedProjection)]
    layers = range(config.num_hidden_layers)
    assert packed == ["head", *(f"layers.{i}.{part}" for i in layers for part in ("gate_up", "down"))]
    scale = plain.abs().max().item()
    tolerance = scale * (1e-5 if dtype == torch.float32 else 2e-2)  # bfloat16: two roundings a layer, now and then
    torch.testing.assert_close(prompt_logits(inference), plain, rtol=0, atol=tolerance)
    del model
    gc.collect()
    assert source() is None


@torch.no_grad()
def prompt_logits(model: InferenceModel) -> Tensor:
    cache = PagedCache(model.config, 1, 1, model.embed.dtype, model.embed.device, 16)
    step = prefill_step([Chunk(0, [0], 0, list(range(3, 10)))], cache, model.embed.device)
    return model(step, cache)
