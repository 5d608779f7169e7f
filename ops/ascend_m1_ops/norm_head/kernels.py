"""The scaling of NormHead's logits on a CPU, without gradients."""

from __future__ import annotations

from torch import Tensor

from ..blocks import blockwise


def scale_in_place(logits: Tensor, scale: Tensor) -> Tensor:
    """``logits`` [rows, vocab] times ``scale`` [vocab], multiplied in the dtype of ``scale``, rounded into place."""
    if logits.dtype == scale.dtype:
        return logits.mul_(scale)
    return blockwise(lambda rows: rows.to(scale.dtype).mul_(scale), logits, out=logits)
