"""What is refused before the engine starts: vLLM asks this in its front process, so the reason ends the output."""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from ascend_m1.errors import InputError

from .refusal import refusing

_CHECKED_FORMATS = ("auto", "hf", "safetensors")  # of loading; the others read other files, or none


class StartChecks(VerifyAndUpdateConfig):
    """vLLM's hook for one architecture."""

    @staticmethod
    @refusing()
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Options and weight files against the configuration; tells vLLM how wide a head is in the cache.

        Raises:
            StartError: speculative decoding was asked for; the heads cannot be shared out among the tensor-parallel
                ranks; a local checkpoint lacks a tensor, or has one of another shape.
        """
        if vllm_config.speculative_config is not None:
            raise InputError(
                "speculative decoding: the convolution's state cannot take rejected tokens back: leave "
                "--speculative-config out"
            )
        from .platform import own_layers

        if current_platform.device_type == "npu" and vllm_config.model_config.hf_config.sliding_window == 1:
            raise InputError("sliding_window=1: vllm-ascend takes a window of the query's own key alone for none")
        model_config, parallel_config = vllm_config.model_config, vllm_config.parallel_config
        row = own_layers(vllm_config)[0].row
        # From this and the state's size vllm-ascend computes the tokens of a block; heads may be padded in the cache.
        model_config.model_arch_config.head_size = row // model_config.get_num_kv_heads(parallel_config)
        if vllm_config.load_config.load_format in _CHECKED_FORMATS and vllm_config.model_config.quantization is None:
            from ascend_m1 import BaichuanM1ForCausalLM
            from ascend_m1.weights import check_checkpoint

            config = vllm_config.model_config.hf_config
            check_checkpoint(vllm_config.model_config.model, BaichuanM1ForCausalLM, {"config": config})
