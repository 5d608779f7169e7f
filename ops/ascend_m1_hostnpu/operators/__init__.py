"""One plain function per operator of CANN's operator API, grouped by what the operators do."""

from __future__ import annotations

import importlib

MODULES = (
    "elementwise",
    "reductions",
    "indexing",
    "dynamic",
    "creation",
    "matmul",
    "foreach",
    "norm",
    "rope",
    "activation",
    "infer_attention",
    "older_attention",
    "training_attention",
    "cache",
    "optimizer",
    "loss",
    "cross_entropy",
    "quant",
    "quant_matmul",
)


def load() -> None:
    """Put every stand-in behind its symbols."""
    for module in MODULES:
        importlib.import_module(f"{__name__}.{module}")
