"""Which device and which dtype to compute in, chosen by name; every choice that surprises comes with its reason.

The only module that imports torch_npu, and only when an NPU is asked for or looked for.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import torch

from .environment import cpu_flags
from .errors import DeviceError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICE_NAMES = "auto, cpu, cuda[:N] or npu[:N]"
# Flags, on x86-64 and on Arm, of processors that multiply matrices of this dtype faster than float32 ones.
_FAST_CPU_FLAGS = {
    torch.bfloat16: {"amx_bf16", "avx512_bf16", "bf16"},
    torch.float16: {"amx_fp16", "avx512_fp16", "asimdhp"},
}


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` takes an NPU before a GPU before the CPU.

    Raises:
        DeviceError: the name is unknown, or there is no such device on this machine.
    """
    if name == "auto":
        if npu_problem() is None:
            return torch.device("npu", 0)
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    matched = re.fullmatch(r"cpu|(cuda|npu)(?::(\d+))?", name)
    if matched is None:
        raise DeviceError(f"device {name!r} is not known: use {DEVICE_NAMES}")
    kind, index = matched[1] or "cpu", int(matched[2] or 0)
    if kind == "cpu":
        return torch.device("cpu")
    problem = npu_problem() if kind == "npu" else cuda_problem()
    if problem is not None:
        raise DeviceError(f"device {name}: {problem}")
    count = device_count(kind)
    if index >= count:
        raise DeviceError(f"device {name}: this machine has {count}: use {kind}:0 to {kind}:{count - 1}")
    return torch.device(kind, index)


def choose_dtype(name: str, device: torch.device, stored: torch.dtype) -> tuple[torch.dtype, str | None]:
    """The dtype to compute in, and the reason if it is not the one that the checkpoint is ``stored`` in.

    ``auto`` keeps the stored dtype where the device computes it fast and takes float32 otherwise.

    Raises:
        DeviceError: the name is unknown.
    """
    if name != "auto":
        if name not in DTYPES:
            raise DeviceError(f"dtype {name!r} is not known: use auto, {', '.join(DTYPES)}")
        return DTYPES[name], None
    if stored == torch.float32 or is_fast(stored, device):
        return stored, None
    short = str(stored).removeprefix("torch.")
    where = "this CPU" if device.type == "cpu" else f"device {device}"
    return torch.float32, f"computing in float32: {where} is slow in the checkpoint's {short} (--dtype {short} insists)"


def is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device multiplies matrices of a 16-bit dtype in hardware."""
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "npu":
        supported = getattr(_torch_npu().npu, "is_bf16_supported", None)
        return dtype == torch.float16 or supported is None or bool(supported())
    return bool(_FAST_CPU_FLAGS.get(dtype, set()) & cpu_flags())


def is_accelerator(device: torch.device) -> bool:
    """Whether the device has memory of its own."""
    return device.type != "cpu"


def is_npu(device: torch.device) -> bool:
    """Whether the device is an Ascend NPU."""
    return device.type == "npu"


def cuda_problem() -> str | None:
    """Why CUDA cannot be used and what to do; None: it can."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch, or use cpu"
    return "torch sees no GPU: check its driver and CUDA_VISIBLE_DEVICES, or use cpu"


def npu_problem() -> str | None:
    """Why no NPU can be used and what to do; None: one can."""
    if find_spec("torch_npu") is None:
        return "torch-npu is not installed: install the extra [npu] beside Ascend's driver and CANN, or use cpu"
    try:
        module = _torch_npu()
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (
            f"torch-npu does not load ({reason}): install CANN and source its set_env.sh; until then "
            "TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps `import torch` working"
        )
    if not module.npu.is_available():
        return "torch-npu sees no NPU: check the driver with npu-smi info and ASCEND_RT_VISIBLE_DEVICES, or use cpu"
    return None


def device_count(kind: str) -> int:
    """Devices of a kind (cpu, cuda or npu) that torch sees."""
    if kind == "npu":
        return int(_torch_npu().npu.device_count()) if npu_problem() is None else 0
    return torch.cuda.device_count() if kind == "cuda" else 1


def visible_devices() -> list[str]:
    """Names of all devices torch can use here, the CPU first."""
    names = ["cpu"]
    names += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(device_count("cuda"))]
    if npu_problem() is None:
        npu = _torch_npu().npu
        names += [f"npu:{i} ({npu.get_device_name(i)})" for i in range(npu.device_count())]
    return names


def _torch_npu() -> Any:
    import torch_npu

    return torch_npu
