"""What a product is called, and which operator and dtype it takes: the same calls on each, one process a product."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = Path(__file__).with_name("product_calls.py")
# What CANN calls the products.
NAMES = {"910B": "Ascend910B3", "A3": "Ascend910_9391", "310P": "Ascend310P3", "950": "Ascend950PR_9589"}
# Call -> what its message names; every other call is fine.
REFUSED = {
    "910B": {},
    "A3": {},
    "950": {
        "prompt": "no longer supported on Ascend950",
        "prompt bfloat16": "no longer supported on Ascend950",
        "prompt grouped": "no longer supported on Ascend950",
        "prompt band": "no longer supported on Ascend950",
        "incre": "no longer supported on Ascend950",
        "incre grouped": "no longer supported on Ascend950",
        "online_max_sum": "aclnnFusedLinearOnlineMaxSum: product",
    },
    "310P": {
        "matmul bfloat16": "aclnnMatmul: self: is not bfloat16 on 310P",
        "mm bfloat16": "aclnnMm: self: is not bfloat16 on 310P",
        "addmm bfloat16": "aclnnAddmm: self: is not bfloat16 on 310P",
        "bmm bfloat16": "aclnnBatchMatMul: self: is not bfloat16 on 310P",
        "baddbmm bfloat16": "aclnnBaddbmm: self: is not bfloat16 on 310P",
        "linear bfloat16": ": self: is not bfloat16 on 310P",
        "add bfloat16": "aclnnAdd: self: is not bfloat16 on 310P",
        "mul bfloat16": "aclnnMuls: self: is not bfloat16 on 310P",
        "softmax bfloat16": "aclnnSoftmax: self: is not bfloat16 on 310P",
        "embedding bfloat16": "aclnnEmbedding: weight: is not bfloat16 on 310P",
        "cast bfloat16": "aclnnCast: self: is not bfloat16 on 310P",
        "cat bfloat16": "aclnnCat: tensors: is not bfloat16 on 310P",
        "zero bfloat16": "aclnnInplaceZero: selfRef: is not bfloat16 on 310P",
        "rms_norm bfloat16": "aclnnRmsNorm: gamma",
        "rms_norm float32 gamma": "aclnnRmsNorm: gamma",
        "rms_norm 16 bytes": "aclnnRmsNorm: x: its last axis has at least 32 bytes",
        "add_rms_norm bfloat16": "aclnnAddRmsNorm: x1: is not bfloat16",
        "swiglu bfloat16": "aclnnSwiGlu: x",
        "swiglu 48 bytes": "aclnnSwiGlu: x: its rows are multiples of 64 bytes",
        "apply_rotary bfloat16": "aclnnApplyRotaryPosEmbV2: query",
        "fused_infer": "aclnnFusedInferAttentionScoreV3: product",
        "fusion_attention": "aclnnFlashAttentionVarLenScore: product",
        "prompt bfloat16": "aclnnPromptFlashAttentionV3: query: is float16",
        "prompt grouped": "aclnnPromptFlashAttentionV3: numKeyValueHeads: is 0",
        "prompt band": "aclnnPromptFlashAttentionV3: preTokens",
        "incre grouped": "aclnnIncreFlashAttentionV4: numKeyValueHeads: is 0",
        "scatter_pa_kv_cache": "aclnnScatterPaKvCache: product",
        "gather_pa_kv_cache": "aclnnGatherPaKvCache: product",
        "scatter_nd_update": "aclnnScatterNdUpdate: product",
        "adamw": "aclnnApplyAdamWV2: product",
        "dynamic_quant bfloat16": "aclnnDynamicQuantV2: x",
        "dynamic_quant 48 columns": "aclnnDynamicQuantV2: x: its last dimension is a multiple of 32",
        "quant_matmul per token": "aclnnQuantMatmulV5: x1Scale",
        "weight_quant int4": "aclnnWeightQuantBatchMatmulV2: weight",
        "weight_quant int8 in groups": "aclnnWeightQuantBatchMatmulV2: antiquantGroupSize: is 0 on 310P",
        "weight_quant bfloat16": "aclnnWeightQuantBatchMatmulV2: x",
        "cross_entropy": "aclnnCrossEntropyLoss: product",
        "online_max_sum": "aclnnFusedLinearOnlineMaxSum: product",
    },
}


@pytest.mark.parametrize("product", REFUSED)
def test_name_and_calls(product: str) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"HOSTNPU_PRODUCT": product, "HOSTNPU_POISON": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, CALLS], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    name, version, own = found["device"]
    assert (name, own) == (NAMES[product], product)
    assert version > 0, "op-plugin knows this product"
    got, expected = found["calls"], REFUSED[product]
    unexpected = {name: text for name, text in got.items() if name not in expected and text != "fine"}
    assert not unexpected
    assert {name: text for name, text in expected.items() if text not in got[name]} == {}
