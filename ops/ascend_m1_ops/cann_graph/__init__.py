"""The package's in-place operators in a CANN graph (TorchAir, mode max-autotune).

CANN's graph engine has no kernel of ours, so ``conv_rope_cache`` is composed of graph operators there (decode only:
one token for each sequence). ``backend()`` is what ``torch.compile(backend=...)`` takes; it sees to it that no cache is
copied (``in_place``) and no weight transposed (``weights``). The other graph routes (``torch.npu.NPUGraph`` and the
backend ``npugraph_ex``) capture the fused kernel itself and need nothing of this.
"""

from __future__ import annotations

from .npu import backend, compiler_config, prepare, register_converters

__all__ = ["backend", "compiler_config", "prepare", "register_converters"]
