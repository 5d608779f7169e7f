"""The Ascend products that the host NPU can stand for, by the name CANN reports for them."""

from __future__ import annotations

import os

SOC = {"910B": "Ascend910B3", "A3": "Ascend910_9391", "310P": "Ascend310P3", "950": "Ascend950PR_9589"}


def product() -> str:
    """The product this process stands for: HOSTNPU_PRODUCT, 910B unless set."""
    return os.environ.get("HOSTNPU_PRODUCT") or "910B"


def announce() -> None:
    """Tell the runtime which product it is."""
    os.environ["HOSTNPU_SOC"] = SOC[product()]
