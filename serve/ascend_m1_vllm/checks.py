"""What is refused before the engine starts."""

from __future__ import annotations

from pathlib import Path

from vllm.config import VllmConfig
from vllm.platforms import current_platform

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.errors import InputError
from ascend_m1.weights import check_checkpoint, check_unquantised

from .config import refuse_unknown
from .platform import own_layers

_CHECKED_FORMATS = ("auto", "hf", "safetensors")  # of loading; the others read other files, or none
_MODELSLIM = "quant_model_description.json"  # beside weights that the vendor's tool has quantised


def check_start(vllm_config: VllmConfig) -> None:
    """Options and weight files against the configuration; tells vLLM how wide a head is in the cache.

    Raises:
        InputError: speculative decoding, or a window of one key on an NPU.
        ConfigError: the configuration with what ``--hf-overrides`` changed; the heads cannot be shared out among the
            tensor-parallel ranks.
        CheckpointError: a local checkpoint lacks a tensor, or has one of another shape.
    """
    if vllm_config.speculative_config is not None:
        raise InputError(
            "speculative decoding: the convolution's state cannot take rejected tokens back: leave "
            "--speculative-config out"
        )
    model_config, parallel_config = vllm_config.model_config, vllm_config.parallel_config
    config = checked(model_config.hf_config)
    if current_platform.device_type == "npu" and config.sliding_window == 1:
        raise InputError("sliding_window=1: vllm-ascend takes a window of the query's own key alone for none")
    row = own_layers(vllm_config)[0].row
    # From this and the state's size vllm-ascend computes the tokens of a block; heads may be padded in the cache.
    model_config.model_arch_config.head_size = row // model_config.get_num_kv_heads(parallel_config)
    if vllm_config.load_config.load_format in _CHECKED_FORMATS:
        check_files(Path(model_config.model), config, model_config.quantization)


def checked(config: BaichuanM1Config) -> BaichuanM1Config:
    """The configuration as it became; fields are checked again. Raises ConfigError."""
    fields = config.to_dict()
    refuse_unknown(fields)
    rebuilt: BaichuanM1Config = BaichuanM1Config.from_dict(fields)
    return rebuilt


def check_files(folder: Path, config: BaichuanM1Config, quantization: str | None) -> None:
    """The tensors of a local folder. Of a quantised one only those that no method quantises. Raises CheckpointError."""
    if not folder.is_dir():
        return
    if quantization is None and (folder / _MODELSLIM).is_file():
        if current_platform.device_type != "npu":
            raise InputError(
                f"{folder / _MODELSLIM}: quantised by ModelSlim, for vllm-ascend: give the original folder"
            )
        quantization = "ascend"  # vllm-ascend finds it out later
    if quantization is None:
        check_checkpoint(folder, BaichuanM1ForCausalLM, {"config": config})
    else:
        check_unquantised(folder, BaichuanM1ForCausalLM, config)
