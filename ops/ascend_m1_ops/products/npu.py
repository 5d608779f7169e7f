"""Which product this machine has."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

from . import choice

_log = logging.getLogger(__name__)
# The beginning of the SoC's name, as CANN reports it.
_SOC = (("Ascend910B", "A2"), ("Ascend910_93", "A3"), ("Ascend310P", "310P"), ("Ascend950", "950"))


@lru_cache(maxsize=1)
def product() -> str:
    """A2, A3, 310P or 950.

    Raises:
        RuntimeError: the device is another Ascend product.
    """
    import torch_npu

    name = str(torch_npu.npu.get_device_name())
    for prefix, known in _SOC:
        if name.startswith(prefix):
            return known
    raise RuntimeError(f"{name} is not supported: the operators are chosen for Ascend 910B, 910_93, 310P and 950")


@torch.compiler.assume_constant_result
def chosen(step: str, dtype: torch.dtype) -> str:
    """Name of the operator that computes ``step`` here in ``dtype``; a fallback tells its reason once."""
    return _chosen(step, dtype)


@lru_cache(maxsize=256)
def _chosen(step: str, dtype: torch.dtype) -> str:
    found = choice(step, product())
    if dtype in found.dtypes:
        return found.operator
    _log.info("%s on %s in %s: composition, for %s does not take it", step, product(), dtype, found.operator)
    return "composition"
