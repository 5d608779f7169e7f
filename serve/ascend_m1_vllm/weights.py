"""A checkpoint's tensors into vLLM's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.utils import is_pp_missing_parameter

from ascend_m1.errors import CheckpointError
from ascend_m1.pages import RankLayer

from .convolution import StateConvolution

_STACKED = ((".gate_proj.", ".gate_up_proj.", 0), (".up_proj.", ".gate_up_proj.", 1))
_TAPS = ((".conv_k", 0), (".conv_v", 1))


def load_weights(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Fill this rank's share; returns the names of the parameters that were filled.

    Raises:
        CheckpointError: a tensor has no place in the model. What is missing was found by ``start`` or is by vLLM.
    """
    parameters = dict(model.named_parameters())
    loaded: set[str] = set()
    for name, tensor in weights:
        if name.endswith("rotary_emb.inv_freq"):  # older files store it; computed from the config here
            continue
        target = _load(model, parameters, name, tensor)
        if target is not None:
            loaded.add(target)
    return loaded


def _load(model: nn.Module, parameters: dict[str, nn.Parameter], name: str, tensor: Tensor) -> str | None:
    """The parameter that took the tensor; None: it belongs to another pipeline stage."""
    target, shard = name, None
    for stored, stacked, index in _STACKED:
        if stored in name:
            target, shard = name.replace(stored, stacked), index
    for stored, index in _TAPS:
        if name.endswith(stored):
            target, shard = f"{name.removesuffix(stored)}.conv.taps", index
    if is_pp_missing_parameter(target, model):
        return None
    if target not in parameters:
        raise CheckpointError(
            f"tensor {name} has no place in this model: use the config.json and weights of one checkpoint"
        )
    parameter = parameters[target]
    if target.endswith(".conv.taps"):
        convolution = model.get_submodule(target.removesuffix(".taps"))
        assert isinstance(convolution, StateConvolution)
        load_taps(convolution.layer, parameter, tensor, shard or 0)
    elif shard is not None:
        loader: Callable[..., None] = parameter.weight_loader  # type: ignore[attr-defined]  # vLLM's parameters have it
        loader(parameter, tensor, shard)
    else:
        if name == "lm_head.weight":  # NormHead: logits are x · normalize(row), so the rows are normalised once, here
            tensor = nn.functional.normalize(tensor.float(), dim=-1)  # rounded to the layer's dtype, not the file's
        getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
    return target


@torch.no_grad()
def load_taps(layer: RankLayer, taps: nn.Parameter, tensor: Tensor, index: int) -> None:
    """A published filter [1, 1, kv_heads, 1, 2] of k (index 0) or v (1): the heads of this rank."""
    first = get_tensor_model_parallel_rank() // layer.replicas * layer.kv_heads
    taps.data[index].copy_(tensor.view(-1, 2)[first : first + layer.kv_heads])
