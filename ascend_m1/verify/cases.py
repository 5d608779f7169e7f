"""What verify-npu checks, as data: small calls of every step at the published head geometries, each with its reference.

A case names the step of the product table, the shapes of its float inputs, the call and its definition. Both take the
same tensors, rounded to the dtype: the call on the device, the definition in float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

import ascend_m1_ops as ops
from ascend_m1_ops.products import PRODUCTS

from . import calls, definitions

Function = Callable[..., tuple[Tensor, ...]]
Shapes = tuple[tuple[int, ...], ...]

WINDOW, GLOBAL = (40, 8, 128), (20, 2, 256)  # heads, key/value heads, head_dim of the published layers
HIDDEN, INTERMEDIATE = 5120, 17408
GEOMETRIES = {"window 40x128/8": WINDOW, "global 20x256/2": GLOBAL}
TRAINED = ("A2", "A3", "950")  # the reference files know no training operators on 310P
_EPS = 1e-6


@dataclass(frozen=True)
class Case:
    """One call.

    step: of the product table, or ``optimizer``, which has no choice.
    shapes: of the float inputs.
    call, definition: of these inputs.
    roundings: how far the result may be off, for 16-bit dtypes and for float32, in roundings of the dtype at the size
        of the largest value.
    training: with the gradients of all inputs.
    launches: names that the log may hold besides those of torch's own operators; one at least where a fused operator is
        the choice. By product, if they differ.
    products, dtypes: where and in which it is tried.
    """

    step: str
    form: str
    shapes: Shapes
    call: Function
    definition: Function
    roundings: tuple[float, float]
    launches: tuple[str, ...] = ()
    training: bool = False
    products: tuple[str, ...] = PRODUCTS
    dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16, torch.float32)


def _training(step: str, form: str, shapes: Shapes, functions: tuple[Function, Function], **rest: object) -> Case:
    return Case(step, f"{form}, training", shapes, *functions, training=True, products=TRAINED, **rest)  # type: ignore[arg-type]


def _norms() -> list[Case]:
    one, two = ((5, HIDDEN), (HIDDEN,)), ((5, HIDDEN), (5, HIDDEN), (HIDDEN,))
    norm = (calls.single(partial(ops.rms_norm, eps=_EPS)), calls.single(partial(ops.rms_norm_reference, eps=_EPS)))
    added = (partial(ops.add_rms_norm, eps=_EPS), partial(definitions.add_rms_norm, eps=_EPS))
    launches = ("aclnnRmsNorm", "aclnnRmsNormGrad")
    return [
        Case("rms_norm", "5 x 5120", one, *norm, (1, 4), launches),
        _training("rms_norm", "5 x 5120", one, norm, roundings=(3, 16), launches=launches),
        # The sum is rounded, and that is what is normalised.
        Case("add_rms_norm", "5 x 5120", two, *added, (3, 8), ("aclnnAddRmsNorm",)),
    ]


def _gates() -> list[Case]:
    shapes = ((3, 2 * INTERMEDIATE),)
    functions = calls.single(ops.swiglu_packed), definitions.swiglu_packed
    launches = ("aclnnSwiGlu", "aclnnSwiGluGrad")
    return [
        Case("swiglu", "3 x 2·17408", shapes, *functions, (2, 8), launches),
        _training("swiglu", "3 x 2·17408", shapes, functions, roundings=(4, 16), launches=launches),
    ]


def _products() -> list[Case]:
    shapes = ((3, 512), (768, 512))
    head, loss = ((3, 512), (768, 512)), ((6, 512), (768, 512))
    return [
        Case("matmul", "3 x 512 x 768", shapes, calls.single(linear), calls.single(linear), (1, 8)),
        Case("matmul", "head, 3 x 512 x 768", head, calls.head, calls.single(ops.norm_head_reference), (3, 16)),
        _training("norm_head_loss", "6 x 512 x 768", loss, (calls.loss, definitions.loss), roundings=(8, 32)),
    ]


def _quantised() -> list[Case]:
    made = []
    for bits, group, products in ((8, 512, PRODUCTS), (4, 128, TRAINED)):  # a 310P takes 8 bits only
        made.append(
            Case(
                "quant_linear",
                f"W{bits}A16, 3 x 512 x 768",
                shapes=((3, 512), (768, 512), (768, 512 // group)),
                call=partial(calls.quantised, bits=bits),
                definition=partial(definitions.quantised, bits=bits),
                roundings=(2, 2),
                launches=("aclnnWeightQuantBatchMatmulV2",),
                products=products,
                dtypes=(torch.float16, torch.bfloat16),
            )
        )
    return made


def _rope(name: str, geometry: tuple[int, int, int]) -> list[Case]:
    shapes = ((7, geometry[0], geometry[2]),)
    launches = ("aclnnRotaryPositionEmbeddingV2", "aclnnRotaryPositionEmbedding", "aclnnRotaryPositionEmbeddingGrad")
    functions = (calls.rope, definitions.rope)
    return [
        Case("rope", name, shapes, *functions, (1, 4), launches),
        _training("rope", name, shapes, functions, roundings=(2, 4), launches=launches),
    ]


def _convolutions(name: str, geometry: tuple[int, int, int]) -> list[Case]:
    heads, kv_heads, dim = geometry
    conv = ((7, 2, kv_heads, dim), (2, kv_heads, 2), (3, 2, kv_heads, dim))
    functions = (calls.short_conv, definitions.short_conv)
    launches = ("triton:short_conv_kernel", "triton:short_conv_backward_kernel")
    cases = [
        Case("short_conv", name, conv, *functions, (1, 2), launches),
        _training("short_conv", name, conv, functions, roundings=(4, 16), launches=launches),
    ]
    for form, lengths in (("decode", (1, 1, 1)), ("prefill", (4, 1, 2))):
        cache = (2, 128, kv_heads, dim)
        fused = ((sum(lengths), (heads + 2 * kv_heads) * dim), (2, kv_heads, 2), cache, cache, (4, 2, kv_heads, dim))
        both = partial(calls.fused, lengths=lengths), partial(definitions.fused, lengths=lengths)
        # k is rounded after the convolution and after the rotation.
        cases.append(
            Case("conv_rope_cache", f"{name}, {form}", fused, *both, (3, 4), ("triton:conv_rope_cache_kernel",))
        )
    return cases


def _attention(name: str, geometry: tuple[int, int, int]) -> list[Case]:
    heads, kv_heads, dim = geometry
    window = 4 if geometry == WINDOW else None
    infer = ("aclnnFusedInferAttentionScoreV4", "aclnnFusedInferAttentionScoreV5")
    tolerance = (3.0, 30.0)
    cases = []
    for form, batch, queries, keys in (("prefill", 2, 9, 9), ("chunk", 2, 3, 9), ("decode", 2, 1, 9)):
        shapes = ((batch, queries, heads, dim), *[(batch, keys, kv_heads, dim)] * 2)
        both = partial(calls.attention, window=window), partial(definitions.attention, window=window)
        cases.append(Case("attention", f"{name}, {form}", shapes, *both, tolerance, infer))
    shapes = ((2, 9, heads, dim), *[(2, 9, kv_heads, dim)] * 2)
    fusion = ("aclnnFlashAttentionVarLenScore", "aclnnFlashAttentionUnpaddingScoreGrad")
    on_950 = ("aclnnFlashAttentionScoreV4", "aclnnFlashAttentionScoreGradV4")
    packed = partial(calls.packed_attention, window=window), partial(definitions.packed_attention, window=window)
    cases.append(_training("attention_training", name, shapes, packed, roundings=(8, 60), launches=(*fusion, *on_950)))
    cache = (5, 128, kv_heads, dim)
    for form, new in (("decode", (1, 1)), ("chunk", (2, 5))):
        paged = ((sum(new), heads, dim), cache, cache)
        both = (
            partial(calls.paged_attention, queries=new, lengths=(3, 130)),
            partial(definitions.paged_attention, queries=new, lengths=(3, 130)),
        )
        cases.append(Case("paged_attention", f"{name}, {form}", paged, *both, tolerance, infer))
    return cases


def cases() -> list[Case]:
    """All of them, in the order of the model."""
    made = _norms()
    for build in (_rope, _convolutions, _attention):
        for name, geometry in GEOMETRIES.items():
            made += build(name, geometry)
    shapes = ((64, 48), (64, 48))
    # Its state has the weight's dtype: both moments are rounded in both steps.
    rest = ((4, 8), ("aclnnApplyAdamWV2",))
    adamw = Case("optimizer", "AdamW, 64 x 48", shapes, calls.adamw, definitions.adamw, *rest, products=TRAINED)
    return [*made, *_gates(), *_products(), *_quantised(), adamw]


def inputs(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """The same random numbers at every call, rounded to the dtype, on the CPU."""
    generator = torch.Generator().manual_seed(sum(map(sum, case.shapes)))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in case.shapes]
