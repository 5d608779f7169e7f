"""What the log of the host NPU may hold: launches of torch's own operators, and those of verified cases.

A name that is in neither set is a call that nobody verifies.
"""

from __future__ import annotations

from collections.abc import Iterable

from ascend_m1_ops.products import TABLE

from .cases import cases

# Operators of torch itself: torch_npu chooses their launches, and every model on the device needs them.
_NAMES = """
    Add Addcdiv Addcmul Addmm Adds All Any Arange ArgMax BatchMatMul BitwiseAndTensor BitwiseNot BitwiseOrTensor Cat
    ClampMin ConstantPadNd Cos Cummax Cumsum Div Embedding EmbeddingDenseBackward EqScalar EqTensor Exp FloorDivides
    ForeachAddScalarV2 Gather GeScalar GeTensor GtScalar GtTensor Index IndexAdd IndexCopy IndexPutImpl IndexSelect
    InplaceAdd InplaceAddcmul InplaceAddmm InplaceBitwiseAndTensor InplaceCopy InplaceFillScalar InplaceIndexCopy
    InplaceMaskedFillScalar InplaceMul InplaceMuls InplaceOne InplaceScatterValue InplaceZero LeTensor
    LinalgVectorNorm LogSoftmax LogSoftmaxBackward LtScalar LtTensor Matmul Max Mean Mm Mul Muls NLLLoss
    NLLLossBackward NeScalar NeTensor Neg Nonzero NonzeroV2 PowTensorScalar Reciprocal ReduceSum
    RemainderTensorScalar RepeatInterleaveIntWithDim Rsqrt Rsubs SWhere ScatterAdd Sigmoid SigmoidBackward Silu
    SiluBackward Sin Softmax SoftmaxBackward Sort Stack Sub Subs Sum Tril Triu
"""
PLAIN = frozenset(f"aclnn{name}" for name in _NAMES.split())
COPIES = frozenset({"memcpy", "memset"})
# Operators that a back end calls and that no step of the table is named after: what covers them.
ELSEWHERE = {
    "conv_rope_cache_in_graph": "the CANN graph of a decode step",
    "linear_in_graph": "the CANN graph of a decode step",
    "npu_fused_infer_attention_score_v2": "attention and paged_attention; in namespace air, the CANN graph",
}


def fused(names: Iterable[str]) -> set[str]:
    """The launches that are not torch's own: the vendor's fused operators and our kernels."""
    return set(names) - PLAIN - COPIES


def uncovered(names: Iterable[str]) -> set[str]:
    """The launches that no case verifies."""
    return fused(names) - {launch for case in cases() for launch in case.launches}


def verified_operators() -> set[str]:
    """Names of the operators, without namespace, that the cases and graph routes of verify-npu run."""
    steps = {case.step for case in cases()}
    chosen = {choice.operator for step in TABLE if step.name in steps for choice in step.choices.values()}
    return {name.rpartition("::")[2] for name in chosen} | set(ELSEWHERE)


def unverified_steps() -> set[str]:
    """Steps of the product table without a case."""
    return {step.name for step in TABLE} - {case.step for case in cases()}
