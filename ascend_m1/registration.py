"""Tell transformers' Auto classes about Baichuan-M1, so that nobody needs remote code."""

from __future__ import annotations

from importlib.util import find_spec

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_baichuan_m1 import BaichuanM1Config
from .tokenization_baichuan_m1 import register_tokenizer


def register() -> None:
    """Configuration and tokenizer, and the models where torch is installed. Idempotent."""
    AutoConfig.register(BaichuanM1Config.model_type, BaichuanM1Config, exist_ok=True)
    register_tokenizer(BaichuanM1Config)
    if find_spec("torch") is None:
        return
    from .modeling_baichuan_m1 import BaichuanM1ForCausalLM, BaichuanM1Model

    AutoModel.register(BaichuanM1Config, BaichuanM1Model, exist_ok=True)
    AutoModelForCausalLM.register(BaichuanM1Config, BaichuanM1ForCausalLM, exist_ok=True)
