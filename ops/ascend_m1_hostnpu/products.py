"""The Ascend products that the host NPU can stand for, by the name CANN reports for them."""

from __future__ import annotations

import os

SOC = {"910B": "Ascend910B3", "A3": "Ascend910_9391", "310P": "Ascend310P3", "950": "Ascend950PR_9589"}
_VARIABLE = "HOSTNPU_PRODUCT"


def product() -> str:
    """The product this process stands for: HOSTNPU_PRODUCT, 910B unless set."""
    return os.environ.get(_VARIABLE, "910B")


def announce() -> None:
    """Tell the runtime which product it is.

    Raises:
        ValueError: HOSTNPU_PRODUCT is none of the known products.
    """
    name = product()
    if name not in SOC:
        raise ValueError(f"{_VARIABLE}={name}: use one of {', '.join(SOC)}")
    os.environ["HOSTNPU_SOC"] = SOC[name]
