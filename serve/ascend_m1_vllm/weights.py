"""A checkpoint's tensors into vLLM's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.utils import is_pp_missing_parameter

from ascend_m1.errors import CheckpointError
from ascend_m1.pages import RankLayer

from .convolution import StateConvolution

_STACKED = ((".gate_proj.", ".gate_up_proj.", 0), (".up_proj.", ".gate_up_proj.", 1))
_TAPS = ((".conv_k", 0), (".conv_v", 1))


def load_weights(model: nn.Module, weights: Iterable[tuple[str, Tensor]], whole: bool = True) -> set[str]:
    """Fill this rank's share; returns the names of the parameters that were filled.

    Args:
        whole: these are all of a checkpoint's tensors, not some that replace those of a running model.

    Raises:
        CheckpointError: a tensor has no place in the model or another shape, or one is missing. ``start`` finds this
            earlier in a local folder that is not quantised; vLLM does not look at what it may process after loading.
    """
    parameters = dict(model.named_parameters())
    filled: set[tuple[str, int]] = set()
    for name, tensor in weights:
        if name.endswith("rotary_emb.inv_freq"):  # older files store it; computed from the config here
            continue
        place = _load(model, parameters, name, tensor)
        if place is not None:
            filled.add(place)
    if whole:
        refuse_gaps(parameters, filled)
    return {target for target, _ in filled}


def refuse_gaps(parameters: Iterable[str], filled: set[tuple[str, int]]) -> None:
    """Every weight and filter needs its tensors; a quantised layer's other parameters are its method's business."""
    for target in parameters:
        if not target.endswith((".weight", ".conv.taps")):
            continue
        names = [name.strip(".") for name, stacked, _ in _STACKED if stacked in target]
        names = [name.strip(".") for name, _ in _TAPS] if target.endswith(".conv.taps") else names
        for shard, name in enumerate(names or ["it"]):
            if (target, shard) not in filled:
                raise CheckpointError(
                    f"parameter {target}: {name} is missing from the checkpoint: copy it again from the source"
                )


def _load(model: nn.Module, parameters: dict[str, nn.Parameter], name: str, tensor: Tensor) -> tuple[str, int] | None:
    """The parameter that took the tensor, and which part of it; None: it belongs to another pipeline stage."""
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
        ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        load_taps(parameter[shard or 0], tensor, convolution.layer, ranks, rank, name)
    elif shard is not None:
        loader: Callable[..., None] = parameter.weight_loader  # type: ignore[attr-defined]  # vLLM's parameters have it
        loader(parameter, tensor, shard)
    else:
        if name == "lm_head.weight":  # NormHead: logits are x · normalize(row), so the rows are normalised once, here
            tensor = nn.functional.normalize(tensor.float(), dim=-1)  # rounded to the layer's dtype, not the file's
        getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
    return target, shard or 0


@torch.no_grad()
def load_taps(taps: Tensor, tensor: Tensor, layer: RankLayer, ranks: int, rank: int, name: str) -> None:
    """A published filter [1, 1, kv_heads, 1, 2]: those of a rank's heads into ``taps`` [kv_heads, 2]."""
    wanted = [1, 1, layer.kv_heads * ranks // layer.replicas, 1, 2]
    if list(tensor.shape) != wanted:
        raise CheckpointError(f"tensor {name} has shape {list(tensor.shape)}: expected {wanted}")
    first = rank // layer.replicas * layer.kv_heads
    taps.copy_(tensor.view(-1, 2)[first : first + layer.kv_heads])
