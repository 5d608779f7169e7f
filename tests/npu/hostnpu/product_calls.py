"""Run in a process of its own with HOSTNPU_PRODUCT set: makes each call and prints what came of it, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import ascend_m1_hostnpu  # its stand-ins come before torch_npu

# isort: split
import torch
import torch_npu
from torch import Tensor

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def zeros(*shape: int, dtype: torch.dtype = F16) -> Tensor:
    """Copied from the host: no operator of the device is called."""
    return torch.zeros(shape, dtype=dtype).npu()


def plain(dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Torch's own operators."""
    word = str(dtype).removeprefix("torch.")
    a, b, rows = zeros(2, 16, dtype=dtype), zeros(16, 4, dtype=dtype), zeros(1, 2, 16, dtype=dtype)
    calls: dict[str, Callable[[], Any]] = {
        "matmul": lambda: rows @ b,
        "mm": lambda: torch.mm(a, b),
        "addmm": lambda: torch.addmm(b[0], a, b),
        "bmm": lambda: torch.bmm(rows, rows.mT),
        "baddbmm": lambda: torch.baddbmm(rows[:, :, :2], rows, rows.mT),
        "linear": lambda: torch.nn.functional.linear(a, a),
        "add": lambda: a + a,
        "mul": lambda: a * 2,
        "softmax": lambda: a.softmax(-1),
        "embedding": lambda: torch.nn.functional.embedding(torch.tensor([1]).npu(), a),
        "cast": lambda: torch_npu.npu_dtype_cast(a, torch.int32),
        "cat": lambda: torch.cat([a, a]),
        "zero": lambda: a.zero_(),
        "copy": lambda: zeros(16, 2).copy_(a.mT),
    }
    return {f"{name} {word}": call for name, call in calls.items()}


def fused_infer(**more: Any) -> Any:
    given = {"num_heads": 2, "num_key_value_heads": 1, "input_layout": "TND", "actual_seq_lengths": [2]} | more
    return torch_npu.npu_fused_infer_attention_score(
        zeros(2, 2, 64), zeros(2, 1, 64), zeros(2, 1, 64), actual_seq_lengths_kv=[2], **given
    )


def prompt(dtype: torch.dtype = F16, kv_heads: int = 0, **more: Any) -> Any:
    size = 64 * (kv_heads or 2)
    query, key = zeros(1, 4, 128, dtype=dtype), zeros(1, 4, size, dtype=dtype)
    return torch_npu.npu_prompt_flash_attention(query, key, key, num_heads=2, num_key_value_heads=kv_heads, **more)


def incre(kv_heads: int = 0) -> Any:
    size = 64 * (kv_heads or 2)
    query, key = zeros(1, 1, 128), zeros(1, 4, size)
    return torch_npu.npu_incre_flash_attention(query, key, key, num_heads=2, num_key_value_heads=kv_heads)


def rotate_both(dtype: torch.dtype) -> Any:
    x, table = zeros(1, 2, 2, 128, dtype=dtype), zeros(1, 2, 1, 128, dtype=dtype)
    return torch_npu.npu_apply_rotary_pos_emb(x, x.clone(), table, table)


def scatter() -> Any:
    key, cache = zeros(1, 2, 16), zeros(2, 8, 2, 16)
    slots = torch.zeros(1, dtype=torch.int32).npu()
    return torch_npu.npu_scatter_pa_kv_cache(key, key, cache, cache.clone(), slots, cache_mode="Norm")


def gather() -> Any:
    cache, out, ints = zeros(2, 8, 2, 16), zeros(3, 2, 16), torch.tensor([[0]], dtype=torch.int32).npu()
    return torch_npu.npu_gather_pa_kv_cache(cache, cache, ints, ints[0] + 3, out, out.clone())


def quantised(token: bool, dtype: torch.dtype) -> Any:
    a, b = torch.ones(2, 32, dtype=torch.int8).npu(), torch.ones(32, 16, dtype=torch.int8).npu()
    scale = torch.ones(2).npu() if token else None
    return torch_npu.npu_quant_matmul(a, b, torch.ones(16).npu(), pertoken_scale=scale, output_dtype=dtype)


def weight_only(dtype: torch.dtype, packed: bool) -> Any:
    weight = torch.ones(64, 16, dtype=torch.int8).npu()
    stored = torch_npu.npu_convert_weight_to_int4pack(weight.int()) if packed else weight
    return torch_npu.npu_weight_quant_batchmatmul(zeros(2, 64, dtype=dtype), stored, zeros(16, dtype=dtype))


def weight_in_groups() -> Any:
    weight = torch.ones(64, 16, dtype=torch.int8).npu()
    return torch_npu.npu_weight_quant_batchmatmul(zeros(2, 64), weight, zeros(2, 16), antiquant_group_size=32)


def adamw() -> None:
    weight = torch.nn.Parameter(zeros(2, 3, dtype=F32))
    weight.grad = zeros(2, 3, dtype=F32)
    torch.optim.AdamW([weight], fused=True).step()


CALLS: dict[str, Callable[[], Any]] = {
    **plain(F16),
    **plain(BF16),
    **plain(F32),
    "rms_norm float16": lambda: torch_npu.npu_rms_norm(zeros(2, 16), zeros(16)),
    "rms_norm bfloat16": lambda: torch_npu.npu_rms_norm(zeros(2, 16, dtype=BF16), zeros(16, dtype=BF16)),
    "rms_norm float32 gamma": lambda: torch_npu.npu_rms_norm(zeros(2, 16), zeros(16, dtype=F32)),
    "rms_norm 16 bytes": lambda: torch_npu.npu_rms_norm(zeros(2, 8), zeros(8)),
    "add_rms_norm bfloat16": lambda: torch_npu.npu_add_rms_norm(
        zeros(2, 16, dtype=BF16), zeros(2, 16, dtype=BF16), zeros(16, dtype=BF16)
    ),
    "swiglu float16": lambda: torch_npu.npu_swiglu(zeros(2, 64)),
    "swiglu bfloat16": lambda: torch_npu.npu_swiglu(zeros(2, 64, dtype=BF16)),
    "swiglu 48 bytes": lambda: torch_npu.npu_swiglu(zeros(2, 24)),
    "apply_rotary float16": lambda: rotate_both(F16),
    "apply_rotary bfloat16": lambda: rotate_both(BF16),
    "fused_infer": fused_infer,
    "fusion_attention": lambda: torch_npu.npu_fusion_attention(
        *(zeros(2, 2, 16) for _ in "qkv"), 2, "TND", actual_seq_qlen=[2], actual_seq_kvlen=[2]
    ),
    "prompt": prompt,
    "prompt bfloat16": lambda: prompt(BF16),
    "prompt grouped": lambda: prompt(kv_heads=1),
    "prompt band": lambda: prompt(pre_tokens=8, next_tokens=0),
    "incre": incre,
    "incre grouped": lambda: incre(1),
    "scatter_pa_kv_cache": scatter,
    "gather_pa_kv_cache": gather,
    "scatter_nd_update": lambda: torch_npu.npu_scatter_nd_update_(zeros(2, 3), torch.tensor([[0]]).npu(), zeros(1, 3)),
    "adamw": adamw,
    "dynamic_quant float16": lambda: torch_npu.npu_dynamic_quant(zeros(2, 32)),
    "dynamic_quant bfloat16": lambda: torch_npu.npu_dynamic_quant(zeros(2, 32, dtype=BF16)),
    "dynamic_quant 48 columns": lambda: torch_npu.npu_dynamic_quant(zeros(2, 48)),
    "quant_matmul float16": lambda: quantised(False, F16),
    "quant_matmul per token": lambda: quantised(True, F16),
    "weight_quant int8": lambda: weight_only(F16, False),
    "weight_quant int4": lambda: weight_only(F16, True),
    "weight_quant int8 in groups": weight_in_groups,
    "weight_quant bfloat16": lambda: weight_only(BF16, False),
    "cross_entropy": lambda: torch_npu.npu_cross_entropy_loss(zeros(2, 4), torch.zeros(2, dtype=torch.int64).npu()),
    "online_max_sum": lambda: torch_npu.npu_fused_linear_online_max_sum(
        zeros(2, 16), zeros(128, 16), torch.zeros(2, dtype=torch.int64).npu(), 0, 127
    ),
}


def outcome(call: Callable[[], Any]) -> str:
    try:
        call()
        torch.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    return "fine"


if __name__ == "__main__":
    device = [torch.npu.get_device_name(0), torch_npu.npu.get_soc_version(), ascend_m1_hostnpu.product()]
    print(json.dumps({"device": device, "calls": {name: outcome(call) for name, call in CALLS.items()}}))
