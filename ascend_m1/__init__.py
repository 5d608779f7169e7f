"""Baichuan-M1 on any torch device, and on MindSpore.

Importing this package registers configuration, tokenizer and models with transformers' Auto classes. Where torch is not
installed, as beside MindSpore, the models are left out, and asking for them says so.
"""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, NoReturn

if find_spec("torch") is None:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there are then no models

from .configuration_baichuan_m1 import BaichuanM1Config, LayerSpec
from .registration import register
from .tokenization_baichuan_m1 import BaichuanM1Tokenizer

if TYPE_CHECKING or find_spec("torch") is not None:
    from .cache import M1Cache
    from .modeling_baichuan_m1 import BaichuanM1ForCausalLM, BaichuanM1Model, BaichuanM1PreTrainedModel

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


def __getattr__(name: str) -> NoReturn:
    """What is not there: without torch, its part."""
    if name in __all__:
        raise ModuleNotFoundError(f"ascend_m1.{name} needs torch: install it", name="torch")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
