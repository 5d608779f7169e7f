"""Baichuan-M1 on any torch device. Importing this package registers the model with transformers' Auto classes."""

from .cache import M1Cache
from .configuration_baichuan_m1 import BaichuanM1Config, LayerSpec
from .modeling_baichuan_m1 import BaichuanM1ForCausalLM, BaichuanM1Model, BaichuanM1PreTrainedModel
from .registration import register
from .tokenization_baichuan_m1 import BaichuanM1Tokenizer

register()

__version__ = "0.1.0"

__all__ = [
    "BaichuanM1Config",
    "BaichuanM1ForCausalLM",
    "BaichuanM1Model",
    "BaichuanM1PreTrainedModel",
    "BaichuanM1Tokenizer",
    "LayerSpec",
    "M1Cache",
    "__version__",
]
