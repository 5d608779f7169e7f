"""Baichuan-M1 on any torch device, and on MindSpore.

Importing this package registers the model with transformers' Auto classes. Where torch is not installed, as beside
MindSpore, there is nothing to register, and only what needs no torch can be imported.
"""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

if find_spec("torch") is None:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there are then no models

from .configuration_baichuan_m1 import BaichuanM1Config, LayerSpec
from .tokenization_baichuan_m1 import BaichuanM1Tokenizer

if TYPE_CHECKING or find_spec("torch") is not None:
    from .cache import M1Cache
    from .modeling_baichuan_m1 import BaichuanM1ForCausalLM, BaichuanM1Model, BaichuanM1PreTrainedModel
    from .registration import register

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
