"""What differs between vLLM's platforms."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.platforms import current_platform

_CPU = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # of vLLM's CPU attention, 0.23 and 0.32


def head_dims() -> Sequence[int] | None:
    """Sizes of a head that attention takes; None: the platform's own attention says if it does not like one."""
    return _CPU if current_platform.is_cpu() else None
