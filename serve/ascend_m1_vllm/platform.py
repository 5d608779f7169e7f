"""What differs between vLLM's platforms, and the layers laid out accordingly."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.config import VllmConfig
from vllm.platforms import current_platform

from ascend_m1.pages import RankLayer, rank_layers

_CPU = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # of vLLM's CPU attention, 0.23 and 0.32
_NPU_UNGROUPED = (64, 128, 192)  # of aclnnFusedInferAttentionScore in layout TND, see docs/npu.md


def head_dims(grouped: bool) -> Sequence[int] | None:
    """Sizes of a head that attention takes, with and without shared key/value heads; None: it says so if it does not
    like one."""
    if current_platform.is_cpu():
        return _CPU
    return _NPU_UNGROUPED if current_platform.device_type == "npu" and not grouped else None


def own_layers(vllm_config: VllmConfig) -> list[RankLayer]:
    """Every layer of the model on one of vLLM's tensor-parallel ranks; raises ConfigError as ``rank_layers``."""
    specs = vllm_config.model_config.hf_config.layer_specs
    return rank_layers(specs, vllm_config.parallel_config.tensor_parallel_size, head_dims)
