"""Which operator computes which step on which Ascend product, and why, as data. docs/npu.md is written from it.

A2 is Atlas A2 (Ascend 910B), A3 is Atlas A3 (Ascend 910_93), 310P the Atlas inference series, 950 is Ascend 950.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["PRODUCTS", "TABLE", "Choice", "Step", "choice"]

PRODUCTS = ("A2", "A3", "310P", "950")
COMPOSITION = "composition"

_HALF = (torch.float16, torch.bfloat16)
_ALL = (*_HALF, torch.float32)


@dataclass(frozen=True)
class Choice:
    """What computes a step.

    operator: of torch_npu, one of ours (``ascend_m1::…``), or "composition" of plain torch operators.
    dtypes: that it takes; any other dtype is computed by the composition.
    why: the reason, for the reader of the table.
    """

    operator: str
    dtypes: tuple[torch.dtype, ...]
    why: str


@dataclass(frozen=True)
class Step:
    """A step of the model and its choice on every product."""

    name: str
    choices: dict[str, Choice]


def _same(choice: Choice, *, on_310p: Choice, on_950: Choice | None = None) -> dict[str, Choice]:
    return {"A2": choice, "A3": choice, "310P": on_310p, "950": on_950 or choice}


def _composed(why: str) -> Choice:
    return Choice(COMPOSITION, (*_ALL, torch.float64), why)


_NO_BF16 = (torch.float16, torch.float32)
_OWN_CONV = Choice("ascend_m1::short_conv", _ALL, "no vendor operator has width 2 on this product: our Triton kernel")
_OWN_FUSED = Choice("ascend_m1::conv_rope_cache", _ALL, "our Triton kernel: the convolution costs no launch of its own")
_NO_TRITON = _composed("triton-ascend has no 310P back end, and no vendor operator has width 2")

TABLE: tuple[Step, ...] = (
    Step(
        "rms_norm",
        _same(
            Choice("npu_rms_norm", _ALL, "one launch, float32 inside, has a derivative"),
            on_310p=Choice("npu_rms_norm", _NO_BF16, "as on A2, without bfloat16"),
        ),
    ),
    Step(
        "add_rms_norm",
        _same(
            Choice(
                "npu_add_rms_norm", _ALL, "residual and norm in one launch; it has no derivative, so not in training"
            ),
            on_310p=Choice("npu_add_rms_norm", _NO_BF16, "as on A2, without bfloat16"),
        ),
    ),
    Step(
        "rope",
        _same(
            Choice("npu_rotary_mul", _ALL, "in float32: tables in the activation's dtype would lose precision"),
            on_310p=_composed("npu_rotary_mul takes head_dim up to 128 there, and the global layers have 256"),
        ),
    ),
    Step("short_conv", _same(_OWN_CONV, on_310p=_NO_TRITON)),
    Step("conv_rope_cache", _same(_OWN_FUSED, on_310p=_NO_TRITON)),
    Step(
        "attention",
        _same(
            Choice(
                "npu_fused_infer_attention_score_v2",
                _HALF,
                "TND: ragged rows without padding, head_dim up to 256, a window as a band; no float32",
            ),
            on_310p=_composed("fused inference attention is not registered for 310P"),
        ),
    ),
    Step(
        "paged_attention",
        _same(
            Choice(
                "npu_fused_infer_attention_score_v2",
                _HALF,
                "TND with a 3-D cache [blocks, block_size, KV·D]: the only form with head_dim 256 and with a window",
            ),
            on_310p=_composed("fused inference attention is not registered for 310P"),
        ),
    ),
    Step(
        "attention_training",
        _same(
            Choice("npu_fusion_attention", _ALL, "TND: packed documents by their lengths, a window as a band"),
            on_310p=_composed("npu_fusion_attention is not registered for 310P"),
        ),
    ),
    Step(
        "swiglu",
        _same(
            Choice("npu_swiglu", _ALL, "one launch on the packed gate and up projection, has a derivative"),
            on_310p=Choice("npu_swiglu", _NO_BF16, "as on A2, without bfloat16; rows must be a multiple of 64 bytes"),
        ),
    ),
    Step("matmul", _same(_composed("torch's own products (aclnnMatmul)"), on_310p=_composed("as on A2"))),
    Step(
        "quant_linear",
        _same(
            Choice("npu_weight_quant_batchmatmul", _HALF, "8 and 4 bits with 16-bit activations, dequantised on chip"),
            on_310p=Choice("npu_weight_quant_batchmatmul", (torch.float16,), "8 bits only"),
        ),
    ),
    Step(
        "norm_head_loss",
        _same(
            _composed("chunks of logits; the fused linear loss has no NormHead and would hold a normalised weight"),
            on_310p=_composed("as on A2"),
        ),
    ),
)
_BY_NAME = {step.name: step for step in TABLE}


def choice(step: str, product: str) -> Choice:
    """What computes the step on the product.

    Raises:
        KeyError: no such step or product.
    """
    return _BY_NAME[step].choices[product]
