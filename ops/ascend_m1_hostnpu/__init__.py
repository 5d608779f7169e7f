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

from . import products

__all__ = ["Launch", "Recording", "RuleError", "aclnn", "names", "need", "null_mode", "product", "recording"]

# `python -m ascend_m1_hostnpu` starts another Python: this one has nothing to load.
if sys.argv[:1] != ["-m"] or sys.orig_argv[1:3] != ["-m", __name__]:
    if "torch_npu" in sys.modules:
        raise ImportError("import ascend_m1_hostnpu before torch_npu: its stand-ins must be loaded first")
    os.environ["TASK_QUEUE_ENABLE"] = "0"  # operator calls stay on the calling thread
    if "HOSTNPU_SITE" not in os.environ:  # else `import torch` loads torch_npu, and site/ the stand-ins before it
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    products.announce()

    import torch  # noqa: F401

    from . import loading  # noqa: F401
    from .launches import Launch, Recording, recording
    from .null import null_mode
    from .operator import RuleError, aclnn, names, need
    from .products import product
