"""What differs between vLLM's platforms."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.platforms import current_platform

_CPU = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # of vLLM's CPU attention, 0.23 and 0.32
_NPU_UNGROUPED = (64, 128, 192)  # of aclnnFusedInferAttentionScore in layout TND, see docs/npu.md


def head_dims(grouped: bool) -> Sequence[int] | None:
    """Sizes of a head that attention takes, with and without shared key/value heads; None: it says so if it does not
    like one."""
    if current_platform.is_cpu():
        return _CPU
    return _NPU_UNGROUPED if current_platform.device_type == "npu" and not grouped else None
