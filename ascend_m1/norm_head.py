"""The language-model head: a linear layer whose rows count by direction alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ascend_m1_ops import inverse_row_norm, norm_head


class NormHead(nn.Module):
    """Logits = x · normalize(weight rows)ᵀ.

    The row norms are computed in every call but a decode step's, which takes those of the call before: a generation
    computes them once, and a weight changed between two generations is never met with old norms.
    """

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.in_features, self.out_features = hidden_size, vocab_size
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.register_parameter("bias", None)  # tools for linear layers look for one
        self._scale: Tensor | None = None  # derived from the weight, never saved
        self._scale_of: tuple[object, ...] = ()

    def scale(self, decode_step: bool = False) -> Tensor:
        """1 / |row| [vocab], float32; differentiable while the weight is being trained."""
        weight = self.weight
        if (torch.is_grad_enabled() and weight.requires_grad) or weight.is_inference():
            return inverse_row_norm(weight)
        # The version counts in-place changes, the rest tells of a replaced weight.
        key = (weight._version, weight.data_ptr(), weight.dtype, weight.device)
        if self._scale is None or not decode_step or key != self._scale_of:
            with torch.inference_mode(False), torch.no_grad():
                self._scale, self._scale_of = inverse_row_norm(weight), key
        return self._scale

    def forward(self, x: Tensor, decode_step: bool = False) -> Tensor:
        """x [..., hidden] -> logits [..., vocab]; ``decode_step``: the weight is that of the call before."""
        flat = norm_head(x.flatten(0, -2), self.weight, self.scale(decode_step))
        return flat.view(*x.shape[:-1], -1)
