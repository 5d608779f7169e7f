"""The host NPU: the real torch_npu on a machine that has neither an NPU nor CANN.

    import ascend_m1_hostnpu  # before torch_npu
    import torch_npu

What is real: the ``npu`` device, op-plugin's checks, autograd, graph capture, TorchAir's lowering. What stands in: the
calls below them, into CANN's C interface. Each operator is a plain function on CPU views of the device's memory.
docs/hostnpu.md tells what this proves and what it cannot. ``python -m ascend_m1_hostnpu`` runs any script on it.
"""

from __future__ import annotations

import os
import sys

from . import products, settings

__all__ = ["Launch", "Recording", "RuleError", "aclnn", "names", "need", "null_mode", "product", "recording"]


def _is_runner() -> bool:
    """Whether this is `python [flags] -m ascend_m1_hostnpu`: it starts another Python and has nothing to load."""
    if sys.argv[:1] != ["-m"]:  # what Python puts there while it looks for the module
        return False
    flag = next((index for index, word in enumerate(sys.orig_argv) if word.startswith("-m")), 0)
    return __name__ in (sys.orig_argv[flag][2:], sys.orig_argv[flag + 1])


if not _is_runner():
    if "torch_npu" in sys.modules:
        raise ImportError("import ascend_m1_hostnpu before torch_npu: its stand-ins must be loaded first")
    os.environ["TASK_QUEUE_ENABLE"] = "0"  # operator calls stay on the calling thread
    if "HOSTNPU_SITE" not in os.environ:  # else `import torch` loads torch_npu, and site/ the stand-ins before it
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    settings.check(os.environ)
    products.announce()

    import torch  # noqa: F401

    from . import loading  # noqa: F401
    from .launches import Launch, Recording, recording
    from .null import null_mode
    from .operator import RuleError, aclnn, names, need
    from .products import product
