"""LoRA by what a matrix is for: q, k and v apart although W_pack holds all three, and the convolution's filters.

Adapters of q, k or v become one PEFT adapter of W_pack. Each has its own A [rank, in] and B [its outputs, rank]; the As
lie on each other, the Bs are the blocks of a matrix that is zero elsewhere:

    W_pack += scale · [B_q 0; 0 B_k] · [A_q; A_k]

so PEFT, vLLM and the built-in engine load it as they load any other. Trained filters stand in the adapter's file beside
the LoRA matrices; PEFT loads them into the model, the engine refuses them and ``ascend-m1 export`` merges them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftModelForCausalLM, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.configuration_baichuan_m1 import LayerSpec
from ascend_m1.errors import CheckpointError, InputError
from ascend_m1.layers import BaichuanM1Attention

PACKED = ("q_proj", "k_proj", "v_proj")  # what W_pack holds, in the order of its rows
_MLP = ("gate_proj", "up_proj", "down_proj")
GROUPS = {
    "all": ("W_pack", "o_proj", *_MLP),  # every matrix of the layers; W_pack as one
    "attention": ("W_pack", "o_proj"),
    "mlp": _MLP,
}
_NAMES = (*PACKED, *GROUPS["all"], *GROUPS)
FILTERS = (".conv_k", ".conv_v")


def add_lora(
    model: BaichuanM1ForCausalLM,
    rank: int,
    alpha: int,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all",
    train_convolution: bool = False,
) -> PeftModel:
    """The model with a new adapter, everything else frozen; a PEFT model like any other.

    Args:
        rank: of each target.
        alpha: the adapter counts ``alpha / rank`` times.
        dropout: of the adapters' inputs, from 0 to less than 1.
        targets: names with commas or a list: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, W_pack (one
            adapter for q, k and v), or the groups all, attention, mlp.
        train_convolution: train the filters conv_k and conv_v, too, in float32.

    Raises:
        InputError: an unknown target, W_pack beside one of its parts, or a number out of range.
    """
    config = lora_config(rank, alpha, dropout, targets)
    adapted = _WithFilters(model, config) if train_convolution else get_peft_model(model, config)
    _keep_apart(model, _split(targets)[1])
    return adapted


def load_adapter(model: BaichuanM1ForCausalLM, folder: Path, trainable: bool = False) -> PeftModel:
    """The model with a stored adapter of PEFT's. PEFT passes over tensors that are missing or too many; here they are
    named.

    Args:
        folder: an adapter of any kind; trained filters included.
        trainable: to go on with it: what it has is trained, filters and parts of W_pack as ``add_lora`` does. Parts are
            told by the zeros between their Bs, so an adapter that was not trained has none.

    Raises:
        CheckpointError: it cannot be read, or does not fit the model.
    """
    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            stored = set(file.keys())
        if trainable and any(name.endswith(FILTERS) for name in stored):
            config = PeftConfig.from_pretrained(str(folder))
            config.inference_mode = False
            adapted: PeftModel = _WithFilters(model, config)
            adapted.load_adapter(str(folder), "default", is_trainable=True)
        else:
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, local_files_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: save the adapter with PEFT's save_pretrained") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): copy it again") from error
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(
            f"adapter {folder} does not fit its base ({reason}): give the base it was trained on"
        ) from error
    wanted = set(get_peft_model_state_dict(adapted))
    filters = {name for name in adapted.state_dict() if name.endswith(FILTERS)}
    for name in sorted(wanted - stored):
        raise CheckpointError(f"{path}: tensor {name} is missing: copy the adapter again")
    for name in sorted(stored - wanted - filters):
        raise CheckpointError(f"{path}: tensor {name} has no place in the base: give the one it was trained on")
    if trainable:
        _keep_apart(model, _stored_parts(model))
    return adapted


def lora_config(rank: int, alpha: int, dropout: float = 0.0, targets: str | Sequence[str] = "all") -> LoraConfig:
    """PEFT's description of the adapter; see ``add_lora``, which also keeps q, k and v apart.

    W_pack's rank is that of its parts together. It stands as ``r``, for vLLM knows one rank and one scale; the others'
    smaller rank is a pattern, and alpha / rank is the same for all.
    """
    if rank < 1 or alpha <= 0 or not 0.0 <= dropout < 1.0:
        raise InputError(
            f"LoRA with rank={rank}, alpha={alpha}, dropout={dropout}: give 1 or more, a number above 0, and 0 to 1"
        )
    others, parts = _split(targets)
    times = max(1, len(parts))
    smaller = others if times > 1 else []
    return LoraConfig(
        r=times * rank,
        lora_alpha=times * alpha,
        lora_dropout=dropout,
        target_modules=[*(["W_pack"] if parts else []), *others],
        rank_pattern=dict.fromkeys(smaller, rank),
        alpha_pattern=dict.fromkeys(smaller, alpha),
        task_type="CAUSAL_LM",
    )


def _split(targets: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Matrices that PEFT adapts as they are, and the parts of W_pack; both in the model's order."""
    asked = [name.strip() for name in targets.split(",")] if isinstance(targets, str) else list(targets)
    for name in asked:
        if name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"LoRA target {name!r}: {hint}give some of {', '.join(_NAMES)}")
    wanted = {matrix for name in asked for matrix in GROUPS.get(name, (name,))}
    parts = [name for name in PACKED if name in wanted]
    if parts and "W_pack" in wanted:
        raise InputError(f"LoRA targets {', '.join(asked)}: W_pack holds {parts[0]}: give the one or the other")
    if not wanted:
        raise InputError(f"no LoRA target: give some of {', '.join(_NAMES)}")
    return [name for name in GROUPS["all"] if name in wanted], parts


def _packed_b(model: BaichuanM1ForCausalLM) -> list[tuple[LayerSpec, nn.ModuleDict]]:
    """The layers' Bs of W_pack, where there are any."""
    attentions = [cast(BaichuanM1Attention, layer.self_attn) for layer in model.model.layers]
    found = [(attention.spec, getattr(attention.W_pack, "lora_B", nn.ModuleDict())) for attention in attentions]
    return [(spec, cast(nn.ModuleDict, matrices)) for spec, matrices in found if "default" in matrices]


def _keep_apart(model: BaichuanM1ForCausalLM, parts: Sequence[str]) -> None:
    for spec, matrices in _packed_b(model) if parts else []:
        b = cast(nn.Linear, matrices["default"])
        matrices["default"] = BlockLinear(b, _blocks(spec, parts, b.in_features // len(parts)).to(b.weight.device))


def _stored_parts(model: BaichuanM1ForCausalLM) -> Sequence[str]:
    """The parts of W_pack that alone can have made its Bs."""
    stored = [(spec, cast(nn.Linear, matrices["default"]).weight) for spec, matrices in _packed_b(model)]
    if any(bool(weight.any()) for _, weight in stored):
        for count in range(1, len(PACKED) + 1):
            for parts in combinations(PACKED, count):
                if all(_only_in_blocks(weight, spec, parts) for spec, weight in stored):
                    return parts
    return ()


def _only_in_blocks(b: Tensor, spec: LayerSpec, parts: Sequence[str]) -> bool:
    rank, left = divmod(b.shape[1], len(parts))
    return not left and not bool(b[_blocks(spec, parts, rank).to(b.device)].any())


class BlockLinear(nn.Linear):
    """An adapter's B [out, ranks] outside whose blocks there is, and stays, nothing.

    The mask is part of the product, so gradients outside are zero under any way of sharding the weight.
    """

    outside: Tensor

    def __init__(self, b: nn.Linear, outside: Tensor) -> None:
        super().__init__(b.in_features, b.out_features, bias=False, device="meta")
        self.weight = b.weight
        self.register_buffer("outside", outside, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.masked_fill(self.outside, 0))


def _blocks(spec: LayerSpec, parts: Sequence[str], rank: int) -> Tensor:
    """bool [outputs of W_pack, rank · parts], True outside the blocks."""
    sizes = dict(zip(PACKED, (spec.q_size, spec.kv_size, spec.kv_size), strict=True))
    rows = torch.tensor([index for index, name in enumerate(PACKED) for _ in range(sizes[name])])
    columns = torch.tensor([PACKED.index(name) for name in parts]).repeat_interleave(rank)
    return rows.unsqueeze(1) != columns.unsqueeze(0)


class _WithFilters(PeftModelForCausalLM):
    """Trains the filters, in float32, and saves them beside the LoRA matrices, under the names by which PEFT loads
    them into the model."""

    def __init__(self, model: BaichuanM1ForCausalLM, config: PeftConfig) -> None:
        super().__init__(model, config)
        for name, parameter in model.named_parameters():
            if name.endswith(FILTERS):
                parameter.data = parameter.data.float()  # as PEFT does with its matrices: 16 bits lose small updates
                parameter.requires_grad_(True)

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)
        if not kwargs.get("is_main_process", True):
            return
        state = kwargs.get("state_dict") or self.state_dict()
        filters = {name: tensor.cpu() for name, tensor in state.items() if name.endswith(FILTERS)}
        path = Path(save_directory) / "adapter_model.safetensors"
        beside = path.with_name(f".{path.name}.part")
        save_file({**load_file(path), **filters}, beside, metadata={"format": "pt"})
        os.replace(beside, path)
