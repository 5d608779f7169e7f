"""Baichuan-M1 for vLLM and vllm-ascend: a plugin that vLLM finds by itself once this distribution is installed."""

from __future__ import annotations

ARCHITECTURE = "BaichuanM1ForCausalLM"


def register() -> None:
    """Tell vLLM and transformers about the architecture; vLLM calls this in each of its processes.

    The configuration and the model are imported when a checkpoint names them, not here. A vLLM that was never tried is
    not touched, for its other models must start; the configuration says why when a checkpoint asks for it.
    """
    from transformers import AutoConfig

    from .config import LazyConfig
    from .versions import why_untried

    AutoConfig.register(LazyConfig.model_type, LazyConfig, exist_ok=True)
    if why_untried() is None:
        _register_model()


def _register_model() -> None:
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from .start import StartChecks

    ModelRegistry.register_model(ARCHITECTURE, "ascend_m1_vllm.model:BaichuanM1ForCausalLM")
    MODELS_CONFIG_MAP[ARCHITECTURE] = StartChecks
