"""What vLLM loads as the configuration of a Baichuan-M1 checkpoint.

Imports nothing of the model: every vLLM process of every model registers it.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class LazyConfig(PretrainedConfig):
    """Stands in transformers' registry until a checkpoint names the model; then ``checked.CheckedConfig`` is built."""

    model_type = "baichuan_m1"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The checked configuration of a config.json's content."""
        from .checked import CheckedConfig

        return CheckedConfig.from_dict(config_dict, **kwargs)
