"""What vLLM loads as the configuration of a Baichuan-M1 checkpoint.

Imports nothing of the model: every vLLM process of every model registers it.
"""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from transformers import PretrainedConfig

from .refusal import StartError, refusing
from .versions import why_untried

# In published and saved files, without a meaning for what is computed here.
_IGNORED = {
    "_commit_hash",
    "_name_or_path",
    "auto_map",
    "head_dim",
    "max_window_layers",
    "model_max_length",
    "model_type",
    "quantization_config",
    "quantize",  # written by ModelSlim
    "rope_parameters",  # looked at by BaichuanM1Config
    "rope_scaling",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_sliding_window",
    "z_loss_weight",
}


class LazyConfig(PretrainedConfig):
    """Stands in transformers' registry until a checkpoint names the model; then ``BaichuanM1Config`` is built."""

    model_type = "baichuan_m1"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of a config.json's content.

        Raises:
            StartError: the installed vLLM was never tried, or the file has a wrong or unknown field.
        """
        reason = why_untried()
        if reason is not None:
            raise StartError(reason)
        from ascend_m1 import BaichuanM1Config

        with refusing():
            refuse_unknown(config_dict)
            return BaichuanM1Config.from_dict(config_dict, **kwargs)


def refuse_unknown(config_dict: dict[str, Any]) -> None:
    """Raises ConfigError for a field that neither Baichuan-M1 nor transformers has: it may be a misspelt one."""
    from ascend_m1 import BaichuanM1Config
    from ascend_m1.errors import ConfigError

    known = {field.name for field in fields(BaichuanM1Config)} | set(PretrainedConfig().to_dict()) | _IGNORED
    for name, value in config_dict.items():
        if name not in known and value is not None and "attn_implementation" not in name:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"do you mean {near[0]}?" if near else "remove it"
            raise ConfigError(f"config.json: field {name} is not known: {hint}")
