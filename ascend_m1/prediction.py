"""How fast decode steps should be on a product: a prediction from launches and bytes, not a measurement.

    step = bytes / (share · bandwidth) + launches · launch        tokens/s = batch / step

Launches and bytes are those that the host NPU's log shows for a captured step (``ascend-m1 verify-npu``). It holds
while memory is the bound, so not for batches of hundreds; and not for float32, 310P (their steps are composed of many
more launches), several devices or quantised weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .configuration_baichuan_m1 import BaichuanM1Config
from .plan import Plan, cache_bytes, parameters

# Counted in the log; tests/npu/test_verify.py counts them again.
LAUNCHES = {"global": 9, "window": 9}
OTHER_LAUNCHES = 6  # embedding, last norm, head (product, scale, cast), choice of the token
# Assumed: no NPU was at hand. The share is what good memory-bound kernels reach, the time that of one task in a graph.
SHARE = 0.8
LAUNCH = 3e-6  # seconds


@dataclass(frozen=True)
class Product:
    """One device as torch sees it. memory: bytes. bandwidth: bytes/s. source: where the public figures are from."""

    name: str
    model: str
    memory: float
    bandwidth: float
    source: str


_SIMULATOR = "JiusiServe/light-llm-simulator, conf/hardware_config.py"
# Public figures for 910B contradict each other; these are the ones of a simulator for these very chips.
PRODUCTS = (
    Product("A2", "910B2, 910B3", 64e9, 1.6e12, _SIMULATOR),
    Product("A3", "one of two dies", 64e9, 1.6e12, _SIMULATOR),
    Product("950", "950PR", 128e9, 1.6e12, "Huawei Connect 2025, keynote on the Ascend roadmap"),
)


def why_not(plan: Plan) -> str | None:
    """The reason why nothing is predicted for a plan; None: it can be."""
    if plan.dtype == "float32":
        return "float32: attention is then composed of plain products"
    if plan.scheme is not None:
        return "quantised weights: how near their products come to the memory's speed is not known"
    return None if plan.devices == 1 else "several devices: collectives are not counted"


def decode_launches(config: BaichuanM1Config) -> int:
    """Launches of a captured decode step, whatever its batch."""
    return sum(LAUNCHES[spec.kind] for spec in config.layer_specs) + OTHER_LAUNCHES


def decode_bytes(config: BaichuanM1Config, batch: int, length: int, itemsize: int) -> int:
    """Bytes that a decode step must move: every weight once (of the embedding a row a sequence) and the live cache.

    The log shows 1 % more for a model a tenth as wide as the published one, for what passes between the operators.
    """
    counts = parameters(config)
    weights = sum(counts.values()) - counts["embedding"] + batch * config.hidden_size
    row_norms = 4 * config.vocab_size  # of the head, float32
    live = cache_bytes(config, batch, length, itemsize, rollback=0)
    return weights * itemsize + row_norms + live.global_layers + live.window_layers


def predict(config: BaichuanM1Config, plan: Plan, itemsize: int) -> dict[str, Any]:
    """For JSON: launches, bytes, and for each product tokens/s, the bound of memory alone, and whether the plan fits.

    Args:
        config: the model.
        plan: for one device and a 16-bit dtype, see ``why_not``.
        itemsize: of the dtype, in bytes.
    """
    launches = decode_launches(config)
    size = decode_bytes(config, plan.batch, plan.length, itemsize)
    products = {}
    for product in PRODUCTS:
        step = size / (SHARE * product.bandwidth) + launches * LAUNCH
        products[product.name] = {
            "model": product.model,
            "memory": int(product.memory),
            "bandwidth": int(product.bandwidth),
            "source": product.source,
            "fits": plan.total <= product.memory,
            "tokens_per_second": round(plan.batch / step, 1),
            "at_most": round(plan.batch * product.bandwidth / size, 1),
        }
    assumed = {"share_of_bandwidth": SHARE, "seconds_per_launch": LAUNCH}
    return {"measured": False, "launches": launches, "bytes": size, "assumed": assumed, "products": products}
