"""``ascend-m1 env``: what is installed and visible here, and what is missing for which use."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .options import how_to_install, quiet, write

_HOST_NPU = "host NPU, not a device"


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "env",
        help="versions, devices and what is missing",
        description="Versions, CPU, devices and CANN on this machine, and what is missing for which use.",
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look around and print it."""
    from ..environment import describe

    with quiet():
        found = describe()
    write(json.dumps(found, indent=2) + "\n" if arguments.json else _table(found))
    return 0


def _table(found: dict[str, Any]) -> str:
    cpu, ascend = found["cpu"], found["ascend"]
    toolkit = ascend["toolkit"]
    memory = "memory unknown" if cpu["memory"] is None else f"{cpu['memory'] / (1 << 30):.1f} GiB"
    rows = [("python", f"{found['python']} on {found['system']}")]
    rows += [(name, version or "not installed") for name, version in found["packages"].items()]
    rows += [
        ("CPU", f"{cpu['cores']} cores, {memory}; {' '.join(cpu['flags']) or 'no known matrix flags'}"),
        ("CPU bfloat16", "fast" if cpu["fast_bfloat16"] else "slow: auto computes in float32"),
        (
            "devices",
            (", ".join(found["devices"]) or "torch not installed") + (f" ({_HOST_NPU})" if found["host_npu"] else ""),
        ),
        ("CANN toolkit", f"{toolkit['version'] or 'version unknown'} in {toolkit['path']}" if toolkit else "not found"),
        ("Ascend driver", ascend["driver"] or "not found"),
        ("npu-smi", ascend["npu-smi"] or "not found"),
    ]
    lines = [f"{name:<14} {value}" for name, value in rows]
    lines += ["", "uses"]
    lines.append(f"  CPU: {found['torch_problem'] or 'ready'}")
    ready = f"{_HOST_NPU}: calls and results can be tried, no time measured" if found["host_npu"] else "ready"
    lines.append(f"  Ascend NPU: {found['npu_problem'] or ready}")
    for extra, absent in found["extras"].items():
        remedy = f"missing {', '.join(absent)}: {how_to_install(extra)}" if absent else "ready"
        lines.append(f"  extra [{extra}]: {remedy}")
    if any(absent for extra, absent in found["extras"].items() if extra == "npu"):
        lines.append(
            "  Install CANN before torch-npu: without it torch-npu fails with `libhccl.so: cannot open shared object "
            "file`,\n  and `import torch` works only with TORCH_DEVICE_BACKEND_AUTOLOAD=0."
        )
    return "\n".join(lines) + "\n"
