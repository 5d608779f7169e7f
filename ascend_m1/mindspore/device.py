"""Which device and which dtype MindSpore computes in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import mindspore
from mindspore._c_expression import MSContext
from mindspore.device_context import ascend

from ..errors import DeviceError

DTYPES = {"float32": mindspore.float32, "bfloat16": mindspore.bfloat16, "float16": mindspore.float16}
# A2, A3 and 950 in MindSpore's words: bfloat16, and the fused attention. Others, such as 310P, have neither.
_FULL = ("ascend910b", "ascend910_93", "ascend950")


@dataclass(frozen=True)
class Device:
    """What was chosen.

    Attributes:
        target: MindSpore's name of the device.
        dtype: name of the dtype of weights, activations and state.
        fused: Ascend's own operators are there.
        reason: why the dtype is not the checkpoint's own, if it is not.
    """

    target: str
    dtype: str
    fused: bool
    reason: str | None = None

    @property
    def mindspore_dtype(self) -> Any:
        return DTYPES[self.dtype]


def choose(device: str, dtype: str, stored: object) -> Device:
    """Make a device MindSpore's.

    Args:
        device: auto (an Ascend NPU before the CPU), cpu, npu or npu:N.
        dtype: auto (the checkpoint's own; float32 on a CPU, float16 in place of bfloat16 on an NPU without it),
            float32, bfloat16 or float16.
        stored: the dtype in config.json.

    Raises:
        DeviceError: a name is unknown, there is no such device, it cannot compute in that dtype, or MindSpore runs on
            another one already.
    """
    matched = re.fullmatch(r"auto|cpu|npu(?::(\d+))?", device)
    if matched is None:
        raise DeviceError(f"device {device!r}: --backend mindspore runs on auto, cpu or npu[:N]")
    if dtype not in ("auto", *DTYPES):
        raise DeviceError(f"dtype {dtype!r} is not known: use auto, {', '.join(DTYPES)}")
    there = device != "cpu" and ascend.is_available()
    if device.startswith("npu") and not there:
        raise DeviceError(f"device {device}: MindSpore sees none: install CANN and source its set_env.sh, or use cpu")
    own = str(stored or "float32").removeprefix("torch.")
    own = own if own in DTYPES else "float32"
    _set("Ascend" if there else "CPU", device, int(matched[1] or 0))
    if not there:
        return _on_cpu(dtype, own)
    name = product()
    full = name in _FULL
    if dtype == "bfloat16" and not full:
        raise DeviceError(f"dtype bfloat16: {name} does not compute in it: use auto, float16 or float32")
    if dtype == "auto" and own == "bfloat16" and not full:
        return Device("Ascend", "float16", full, f"computing in float16: {name} has no bfloat16")
    return Device("Ascend", own if dtype == "auto" else dtype, full)


def product() -> str:
    """The NPU's, as ascend910b, from the same private place where MindSpore's own operators ask."""
    return str(MSContext.get_instance().get_ascend_soc_version())


def _set(target: str, device: str, index: int) -> None:
    try:
        mindspore.set_device(target, index)
    except RuntimeError as error:  # after an operator, after another device, or there is none of that number
        reason = str(error).splitlines()[0]
        raise DeviceError(
            f"device {device}: {reason}: choose one of this machine, once, before MindSpore's first operator"
        ) from None


def _on_cpu(dtype: str, own: str) -> Device:
    if dtype not in ("auto", "float32"):
        raise DeviceError(f"dtype {dtype}: this back end computes in float32 on a CPU: use auto or float32")
    changed = dtype == "auto" and own != "float32"
    return Device("CPU", "float32", False, "computing in float32, as this back end does on a CPU" if changed else None)
