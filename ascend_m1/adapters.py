"""LoRA adapters from PEFT folders beside each other in one batch: y = W x + scale · B A x for each token's own A and B.

All adapters' A are one matrix, a stripe of ``rank`` rows for each slot; so are the B. Every token is multiplied by all
of them, which costs little beside W, and what its own adapter did not make is set to zero in between: no token waits
for another's adapter, no weight is gathered, and a captured graph serves any mix.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .checkpoint_files import read_adapter_config
from .configuration_baichuan_m1 import BaichuanM1Config, LayerSpec
from .errors import CheckpointError, InputError
from .inference import InferenceModel
from .modeling_baichuan_m1 import BaichuanM1ForCausalLM
from .projection import Project

# The projections of a layer: where PEFT finds their matrices, and which outputs each makes.
TARGETS = {
    "qkv": ("self_attn.W_pack",),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_NUMBERS = (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))  # for some modules, for all others
_PREFIX = "base_model.model.model.layers."
# What makes more of an adapter than A and B: matrices of other kinds, or a base that PEFT changes when it loads one.
_BEYOND = (
    *("bias", "use_dora", "modules_to_save", "lora_bias", "use_qalora", "use_bdlora"),
    *("layer_replication", "alora_invocation_tokens", "arrow_config"),
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
Pair = tuple[Tensor, Tensor]  # A [rank, in] and scale · B [out, rank]


@dataclass(frozen=True)
class Adapter:
    """One adapter's matrices by layer and name (``TARGETS``), and its rank."""

    rank: int
    pairs: dict[tuple[int, str], Pair]


def read_adapter(folder: Path, config: BaichuanM1Config) -> Adapter:
    """An adapter as PEFT saves it.

    Raises:
        CheckpointError: a file is missing or cannot be read, or the adapter is not a plain LoRA of this model.
    """
    options = _plain_options(folder)
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: save the adapter with PEFT's save_pretrained")
    matrices: dict[tuple[int, str, str], Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  not a dict
                matrices[_place(key, path)] = file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): copy it again") from error
    pairs: dict[tuple[int, str], Pair] = {}
    for layer, target in dict.fromkeys((layer, target) for layer, target, _ in matrices):
        found = [matrices.get((layer, target, which)) for which in ("lora_A", "lora_B")]
        rank, scale = _rank_and_scale(folder / "adapter_config.json", options, f"model.layers.{layer}.{target}")
        wanted = _shapes(config, layer, target, rank)
        for matrix, which, shape in zip(found, ("lora_A", "lora_B"), wanted, strict=True):
            if matrix is None or matrix.shape != shape:
                have = "is missing" if matrix is None else f"has shape {list(matrix.shape)}"
                raise CheckpointError(f"{path}: {which} of layer {layer}'s {target} {have}: expected {list(shape)}")
        a, b = found
        assert a is not None
        assert b is not None
        pairs[layer, target] = a, b.double() * scale
        if not all(bool(matrix.isfinite().all()) for matrix in pairs[layer, target]):
            raise CheckpointError(
                f"{path}: layer {layer}'s {target} has values that are no finite numbers: train the adapter anew"
            )
    return Adapter(max((len(a) for a, _ in pairs.values()), default=0), pairs)


def _plain_options(folder: Path) -> dict[str, Any]:
    """Of adapter_config.json, which must ask for nothing but A and B."""
    options, path = read_adapter_config(folder), folder / "adapter_config.json"
    kind = options.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type={kind!r}: only LORA is served: merge other adapters into the model")
    for name in (*_BEYOND, "init_lora_weights"):
        value = options.get(name)
        beyond = str(value).lower().startswith(_CHANGES_BASE) if name == "init_lora_weights" else value
        if beyond and value != "none":
            raise CheckpointError(
                f"{path}: {name}={value!r}: not served beside other adapters: merge it into the model"
            )
    return options


def _rank_and_scale(path: Path, options: dict[str, Any], module: str) -> tuple[int, float]:
    """Of a module's matrices: those of a pattern that its name ends with, or the adapter's."""
    rank, alpha = (_of_pattern(path, options, *names, module) for names in _NUMBERS)
    numbers = isinstance(rank, int) and isinstance(alpha, (int, float))
    if not numbers or rank < 1 or not abs(alpha) <= sys.float_info.max:
        raise CheckpointError(f"{path}: r={rank!r}, lora_alpha={alpha!r}: both must be positive numbers")
    return rank, alpha / (sqrt(rank) if options.get("use_rslora") else rank)


def _of_pattern(path: Path, options: dict[str, Any], pattern: str, default: str, module: str) -> Any:
    try:
        for name, value in (options.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({name})$", module):  # PEFT's rule
                return value
    except (AttributeError, re.error):
        raise CheckpointError(
            f"{path}: {pattern}={options[pattern]!r}: give regular expressions for names of modules, and numbers"
        ) from None
    return options.get(default)


def _place(key: str, path: Path) -> tuple[int, str, str]:
    """Layer, target and lora_A or lora_B of a tensor."""
    number, _, rest = key.removeprefix(_PREFIX).partition(".")
    target, _, which = rest.removesuffix(".weight").rpartition(".")
    targets = {target for names in TARGETS.values() for target in names}
    if key.endswith((".conv_k", ".conv_v")):
        raise CheckpointError(f"{path}: {key}: trained filters are not served: merge them with `ascend-m1 export`")
    known = target in targets and which in ("lora_A", "lora_B") and re.fullmatch("[0-9]{1,4}", number)
    if not key.startswith(_PREFIX) or not known:
        raise CheckpointError(f"{path}: {key}: only {', '.join(sorted(targets))} of the layers can have an adapter")
    return int(number), target, which


def _sizes(config: BaichuanM1Config, spec: LayerSpec, target: str) -> tuple[int, int]:
    """Inputs and outputs of a matrix."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return {
        "self_attn.W_pack": (hidden, spec.q_size + 2 * spec.kv_size),
        "self_attn.o_proj": (spec.q_size, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }[target]


def _shapes(config: BaichuanM1Config, layer: int, target: str, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    if layer >= len(config.layer_specs):
        return (rank, 0), (0, rank)  # no such layer: no shape fits
    inputs, outputs = _sizes(config, config.layer_specs[layer], target)
    return (rank, inputs), (outputs, rank)


def check_rank(adapter: Adapter, room: int) -> None:
    """Raises InputError if its rank is larger than there is room for."""
    if adapter.rank > room:
        raise InputError(
            f"the adapter has rank {adapter.rank}: there is room for {room}: raise --max-adapter-rank "
            "(maxLoraRank in config.json)"
        )


def merge_adapter(model: BaichuanM1ForCausalLM, adapter: Adapter) -> None:
    """Add an adapter to the model's own weights, computed in float64 and rounded once."""
    with torch.no_grad():
        for (layer, target), (a, b) in adapter.pairs.items():
            weight = cast(nn.Linear, model.model.layers[layer].get_submodule(target)).weight
            weight.copy_(weight.double() + (b @ a.double()).to(weight.device))


class AdaptedProjection(nn.Module):
    """A projection and the stripes of all adapters, which are zero where a slot is empty.

    Args:
        base: without adapters.
        sizes: inputs and outputs of each matrix in it; their outputs lie side by side.
        columns: slots · rank.
    """

    def __init__(self, base: Project, sizes: list[tuple[int, int]], columns: int, like: Tensor) -> None:
        super().__init__()
        self.base = base
        self.a = nn.ParameterList(_zeros(like, columns, inputs) for inputs, _ in sizes)
        self.b = nn.ParameterList(_zeros(like, outputs, columns) for _, outputs in sizes)

    def forward(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        y = self.base(x)
        if chosen is None:
            return y
        linear = nn.functional.linear
        parts = [linear(linear(x, a) * chosen, b) for a, b in zip(self.a, self.b, strict=True)]
        return y + (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))


def _zeros(like: Tensor, rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(like.new_zeros(rows, columns), requires_grad=False)


class AdapterSlots:
    """Room for ``count`` adapters of at most ``rank`` in a model for serving, whose projections it replaces.

    Slots are 1 to ``count``; 0 is the model itself.
    """

    def __init__(self, model: InferenceModel, count: int, rank: int) -> None:
        if count < 1 or rank < 1:
            raise InputError(f"adapters={count}, adapter_rank={rank}: give 1 or more of each")
        self.model, self.count, self.rank = model, count, rank
        slots = torch.arange(1, count + 1, dtype=torch.int32, device=model.embed.device)
        model.adapter_columns = nn.Parameter(slots.repeat_interleave(rank), requires_grad=False)
        for spec, layer in zip(model.config.layer_specs, model.layers, strict=True):
            for name, targets in TARGETS.items():
                sizes = [_sizes(model.config, spec, target) for target in targets]
                setattr(layer, name, AdaptedProjection(getattr(layer, name), sizes, count * rank, model.embed))

    @torch.no_grad()
    def write(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter into a slot, whatever was there.

        Raises:
            InputError: its rank is larger than there is room for, or a value than the model's dtype has.
        """
        check_rank(adapter, self.rank)
        dtype = self.model.embed.dtype
        pairs = {place: (a.to(dtype), b.to(dtype)) for place, (a, b) in adapter.pairs.items()}
        if not all(bool(matrix.isfinite().all()) for pair in pairs.values() for matrix in pair):  # all others' NaN, too
            raise InputError(f"the adapter has values too large for {dtype}: use --dtype bfloat16")
        stripe = slice((slot - 1) * self.rank, slot * self.rank)
        for index, layer in enumerate(self.model.layers):
            for name, targets in TARGETS.items():
                projection = getattr(layer, name)
                for a, b, target in zip(projection.a, projection.b, targets, strict=True):
                    a[stripe].zero_()
                    b[:, stripe].zero_()
                    pair = pairs.get((index, target))
                    if pair is not None:
                        first = slice(stripe.start, stripe.start + len(pair[0]))
                        a[first], b[:, first] = pair[0].to(a), pair[1].to(b)
