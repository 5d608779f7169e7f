"""Which device and which dtype MindSpore computes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mindspore

from ..errors import DeviceError

DTYPES = {"float32": mindspore.float32, "bfloat16": mindspore.bfloat16, "float16": mindspore.float16}
_TARGETS = {"cpu": "CPU", "npu": "Ascend"}


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
    reason: str | None = None

    @property
    def fused(self) -> bool:
        return self.target == "Ascend"

    @property
    def mindspore_dtype(self) -> Any:
        return DTYPES[self.dtype]


def choose(device: str, dtype: str, stored: object) -> Device:
    """Make a device MindSpore's.

    Args:
        device: auto (an Ascend NPU before the CPU), cpu or npu.
        dtype: auto (the checkpoint's own; float32 on a CPU), float32, bfloat16 or float16.
        stored: the dtype in config.json.

    Raises:
        DeviceError: a name is unknown, there is no such device, it cannot compute in that dtype, or MindSpore runs on
            another one already.
    """
    there = mindspore.hal.is_available("Ascend")
    if device not in ("auto", *_TARGETS):
        raise DeviceError(f"device {device!r}: --backend mindspore runs on auto, cpu or npu")
    if device == "npu" and not there:
        raise DeviceError("device npu: MindSpore sees none: install CANN and source its set_env.sh, or use cpu")
    if device == "auto":
        device = "npu" if there else "cpu"
    target = _TARGETS[device]
    if dtype not in ("auto", *DTYPES):
        raise DeviceError(f"dtype {dtype!r} is not known: use auto, {', '.join(DTYPES)}")
    own = str(stored or "float32").removeprefix("torch.")
    own = own if own in DTYPES else "float32"
    reason = None
    if target == "CPU":
        if dtype not in ("auto", "float32"):
            raise DeviceError(f"dtype {dtype}: MindSpore multiplies matrices in float32 on a CPU: use auto or float32")
        if dtype == "auto" and own != "float32":
            reason = f"computing in float32: MindSpore has no CPU kernels for the checkpoint's {own}"
        dtype = "float32"
    try:
        mindspore.set_device(target)
    except RuntimeError:  # after an operator, or another device
        raise DeviceError(f"device {device}: choose it before MindSpore's first operator, and once") from None
    return Device(target, own if dtype == "auto" else dtype, reason)
