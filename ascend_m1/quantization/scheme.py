"""Which weights are quantised and how: symmetric whole numbers, round to nearest, by the scale that errs least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ascend_m1_ops.native import GROUPS

from ..errors import InputError

# The layers' matrices. Embedding and head stay: NormHead divides by the norms of the head's rows.
TARGETS = (".W_pack.weight", ".o_proj.weight", ".gate_proj.weight", ".up_proj.weight", ".down_proj.weight")
DEFAULT_GROUP = 128
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)  # shares of the largest weight that the range may end at, for int4


@dataclass(frozen=True)
class Scheme:
    """W8A16 with one scale for a row, or W4A16 with one for every ``group`` inputs.

    Raises:
        InputError: bits or group are not these.
    """

    bits: int
    group: int | None = None

    def __post_init__(self) -> None:
        if self.bits == 8 and self.group is not None:
            raise InputError(f"group size {self.group} with 8 bits: 8 bits have one scale for a row: leave it out")
        if self.bits == 4 and self.group not in GROUPS:
            raise InputError(f"group size {self.group} with 4 bits: give one of {', '.join(map(str, GROUPS))}")
        if self.bits not in (4, 8):
            raise InputError(f"{self.bits} bits: give 4 or 8")

    @classmethod
    def of(cls, bits: int, group: int | None) -> Scheme:
        """As the command line says it: 4 bits without a group have groups of 128. Raises InputError."""
        return cls(bits, DEFAULT_GROUP if group is None and bits == 4 else group)

    def __str__(self) -> str:
        return "W8A16" if self.group is None else f"W4A16 in groups of {self.group}"

    @property
    def largest(self) -> int:
        """Of the numbers that the scale is computed from."""
        return (1 << self.bits - 1) - 1


def is_target(name: str) -> bool:
    """Whether a checkpoint's tensor is quantised."""
    return name.endswith(TARGETS)


def quantise(weight: Tensor, scheme: Scheme, name: str = "weight") -> tuple[Tensor, Tensor]:
    """weight [out, in] -> numbers int8 [out, in], scales of its dtype [out, in / group].

    Numbers are rounded with the scale as it is stored.

    Raises:
        InputError: the group does not divide the inputs, or a weight is not finite.
    """
    group = scheme.group or weight.shape[1]
    if weight.shape[1] % group:
        raise InputError(f"{name}: {weight.shape[1]} inputs are no multiple of the group size {group}: give another")
    pieces = weight.float().unflatten(1, (-1, group))
    peak = pieces.abs().amax(-1, keepdim=True)
    if not bool(peak.isfinite().all()):
        raise InputError(f"{name}: has weights that are not finite: copy the checkpoint again")
    numbers, scales, least = torch.zeros_like(pieces), torch.ones_like(peak), torch.full_like(peak, torch.inf)
    for shrink in _SHRINK if scheme.bits == 4 else (1.0,):
        scale = (peak * shrink / scheme.largest).to(weight.dtype).float().clamp_min(torch.finfo(weight.dtype).tiny)
        found = (pieces / scale).round().clamp(-scheme.largest - (scheme.bits == 4), scheme.largest)
        error = (found * scale - pieces).square().sum(-1, keepdim=True)
        better = error < least
        numbers, scales = torch.where(better, found, numbers), torch.where(better, scale, scales)
        least = torch.where(better, error, least)
    return numbers.to(torch.int8).flatten(1), scales.squeeze(-1).to(weight.dtype)
