"""The engine's program where vllm-ascend's own kernels are not compiled, for which it needs CANN.

It looks for them when the first layer asks. If that happens while torch.compile traces the layer, the import that fails
ends the trace; so they are looked for here, before.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":  # worker processes import this file again
    sys.path[0] = str(Path(__file__).parents[1] / "vllm")
    from engine import answer
    from vllm_ascend.utils import enable_custom_op

    enable_custom_op()
    answer(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
