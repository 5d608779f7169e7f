"""What the pages forbid fails when it is asked for, naming operator, argument and page; one case for each rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor

from .checks import assert_refused, half, ints


def scatter(
    key: Tensor | None = None, cache: Tensor | None = None, slots: Tensor | None = None, mode: str = "Norm"
) -> None:
    key = half(2, 2, 16) if key is None else key
    cache = half(3, 8, 2, 16) if cache is None else cache
    slots = ints(0, 1) if slots is None else slots
    torch_npu.npu_scatter_pa_kv_cache(key, key, cache, torch.clone(cache), slots, cache_mode=mode)


SCATTER: dict[str, tuple[str, Callable[[], None]]] = {
    "float32": ("key", lambda: scatter(half(2, 2, 16, dtype=torch.float32), half(3, 8, 2, 16, dtype=torch.float32))),
    "dtypes differ": ("keyCache", lambda: scatter(half(2, 2, 16, dtype=torch.bfloat16))),
    "slots of int16": ("slotMapping", lambda: scatter(slots=ints(0, 1, dtype=torch.int16))),
    "slots without one": ("slotMapping", lambda: scatter(slots=ints(0))),
    "slot twice": ("slotMapping", lambda: scatter(slots=ints(5, 5))),
    "slot negative": ("slotMapping", lambda: scatter(slots=ints(-1, 5))),
    "slot beyond the cache": ("slotMapping", lambda: scatter(slots=ints(0, 24))),
    "heads unlike the cache": ("keyCache", lambda: scatter(half(2, 4, 16))),
    "strided cache": ("keyCache", lambda: scatter(cache=half(3, 8, 4, 16)[:, :, ::2])),
    "NZ with a cache in ND": ("keyCache", lambda: scatter(mode="PA_NZ")),
    "unknown mode": ("cacheMode", lambda: scatter(mode="NHSD")),
}


@pytest.mark.parametrize("name", SCATTER)
def test_scatter_pa_kv_cache(name: str) -> None:
    argument, call = SCATTER[name]
    assert_refused("aclnnScatterPaKvCache", argument, "aclnnScatterPaKvCache.md", call)


def gather(**changes: Any) -> None:
    given: dict[str, Any] = {
        "cache": half(4, 8, 2, 16),
        "table": ints([0, 1]),
        "lens": ints(9),
        "out": half(9, 2, 16),
        "is_seq_lens_cumsum": False,
    }
    given |= changes
    cache, table, lens, out = (given.pop(name) for name in ("cache", "table", "lens", "out"))
    torch_npu.npu_gather_pa_kv_cache(cache, cache, table, lens, out, torch.clone(out), **given)


GATHER: dict[str, tuple[str, Callable[[], None]]] = {
    "float32": ("keyCache", lambda: gather(cache=half(4, 8, 2, 16).float(), out=half(9, 2, 16).float())),
    "out of another dtype": ("key", lambda: gather(out=half(9, 2, 16, dtype=torch.bfloat16))),
    "table of int64": ("blockTables", lambda: gather(table=ints([0, 1], dtype=torch.int64))),
    "lens of another batch": ("seqLens", lambda: gather(lens=ints(4, 5))),
    "out of another length": ("key", lambda: gather(out=half(8, 2, 16))),
    "out of other heads": ("key", lambda: gather(out=half(9, 1, 16))),
}


@pytest.mark.parametrize("name", GATHER)
def test_gather_pa_kv_cache(name: str) -> None:
    argument, call = GATHER[name]
    assert_refused("aclnnGatherPaKvCache", argument, "aclnnGatherPaKvCache.md", call)


def update(var: Tensor, indices: Tensor, updates: Tensor) -> Callable[[], None]:
    return lambda: torch_npu.npu_scatter_nd_update_(var, indices, updates)


UPDATE: dict[str, tuple[str, Callable[[], Callable[[], None]]]] = {
    "int32 table": ("var", lambda: update(half(4, 3).int(), ints([0]), half(1, 3).int())),
    "dtypes differ": ("updates", lambda: update(half(4, 3), ints([0]), half(1, 3).float())),
    "indices of one dimension": ("indices", lambda: update(half(4, 3), ints(0), half(3))),
    "indices of int16": ("indices", lambda: update(half(4, 3), ints([0], dtype=torch.int16), half(1, 3))),
    "index too deep": ("indices", lambda: update(half(4, 3), ints([0, 0, 0]), half(1))),
    "index negative": ("indices", lambda: update(half(4, 3), ints([-1]), half(1, 3))),
    "index beyond": ("indices", lambda: update(half(4, 3), ints([4]), half(1, 3))),
    "updates of another shape": ("updates", lambda: update(half(4, 3), ints([0]), half(1, 2))),
}


@pytest.mark.parametrize("name", UPDATE)
def test_scatter_nd_update(name: str) -> None:
    argument, make = UPDATE[name]
    assert_refused("aclnnScatterNdUpdate", argument, "aclnnScatterNdUpdate.md", make())


def rotate(x: Tensor, *table: int, mode: str = "half") -> Callable[[], None]:
    return lambda: torch_npu.npu_rotary_mul(x, *(torch.zeros(table, dtype=x.dtype, device="npu") for _ in "cs"), mode)


def apply(dim: int = 128, layout: str = "BSND", mode: str = "half", table_heads: int = 1) -> Callable[[], None]:
    x, table = half(1, 2, 4, dim), half(1, 2, table_heads, dim)
    return lambda: torch_npu.npu_apply_rotary_pos_emb(x, torch.clone(x), table, table, layout, mode)


V2 = "aclnnRotaryPositionEmbeddingV2"
APPLY = "aclnnApplyRotaryPosEmbV2"
SINGLE, BF16 = torch.float32, torch.bfloat16
LAYERS: dict[str, tuple[str, str, str, Callable[[], Callable[[], object]]]] = {
    "rotary: odd head size": (V2, "x", "RotaryPositionEmbedding.md", lambda: rotate(half(4, 2, 15), 4, 1, 15)),
    "rotary: head size 896": (V2, "x", "RotaryPositionEmbedding.md", lambda: rotate(half(4, 2, 896), 4, 1, 896)),
    "rotary: half a table": (V2, "cos", "RotaryPositionEmbedding.md", lambda: rotate(half(4, 2, 16), 4, 1, 8)),
    "rotary: table of another length": (
        V2,
        "cos",
        "RotaryPositionEmbedding.md",
        lambda: rotate(half(4, 2, 16), 1, 1, 16),
    ),
    "rotary: BNSD decode breaks B * N <= 8 * S": (
        V2,
        "cos",
        "RotaryPositionEmbedding.md",
        lambda: rotate(half(3, 4, 1, 64), 1, 1, 1, 64),
    ),
    "rotary: tables per head with neighbours": (
        V2,
        "cos",
        "RotaryPositionEmbedding.md",
        lambda: rotate(half(4, 2, 16), 4, 2, 16, mode="interleave"),
    ),
    "apply rotary: head size 256": (APPLY, "query", "ApplyRotaryPosEmbV2.md", lambda: apply(256)),
    "apply rotary: layout SBND": (APPLY, "layout", "ApplyRotaryPosEmbV2.md", lambda: apply(layout="SBND")),
    "apply rotary: neighbours": (APPLY, "rotaryMode", "ApplyRotaryPosEmbV2.md", lambda: apply(mode="interleave")),
    "apply rotary: tables per head": (APPLY, "cos", "ApplyRotaryPosEmbV2.md", lambda: apply(table_heads=4)),
    "swiglu: odd size": ("aclnnSwiGlu", "x", "aclnnSwiGlu.md", lambda: lambda: torch_npu.npu_swiglu(half(2, 5))),
    "swiglu: strided": ("aclnnSwiGlu", "x", "aclnnSwiGlu.md", lambda: lambda: torch_npu.npu_swiglu(half(4, 6).T)),
    "rms_norm: pair of dtypes": (
        "aclnnRmsNorm",
        "gamma",
        "aclnnRmsNorm.md",
        lambda: lambda: torch_npu.npu_rms_norm(half(2, 8, dtype=SINGLE), half(8, dtype=BF16)),
    ),
    "rms_norm: gamma of another size": (
        "aclnnRmsNorm",
        "gamma",
        "aclnnRmsNorm.md",
        lambda: lambda: torch_npu.npu_rms_norm(half(2, 8), half(4)),
    ),
    "add_rms_norm: dtypes differ": (
        "aclnnAddRmsNorm",
        "gamma",
        "aclnnAddRmsNorm.md",
        lambda: lambda: torch_npu.npu_add_rms_norm(half(2, 8), half(2, 8), half(8, dtype=SINGLE)),
    ),
    "add_rms_norm: shapes differ": (
        "aclnnAddRmsNorm",
        "x2",
        "aclnnAddRmsNorm.md",
        lambda: lambda: torch_npu.npu_add_rms_norm(half(2, 8), half(1, 8), half(8)),
    ),
    "add_rms_norm: empty": (
        "aclnnAddRmsNorm",
        "x1",
        "npu_add_rms_norm.md",
        lambda: lambda: torch_npu.npu_add_rms_norm(half(0, 8), half(0, 8), half(8)),
    ),
    "nll_loss: target out of range": (
        "aclnnNLLLoss",
        "target",
        "aclnnNLLLoss.md",
        lambda: lambda: torch.nn.functional.nll_loss(half(2, 3, dtype=SINGLE), ints(0, 3, dtype=torch.int64)),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    operator, argument, page, make = LAYERS[name]
    assert_refused(operator, argument, page, make())


def test_adamw_wants_one_dtype() -> None:
    weight = torch.nn.Parameter(half(2, 3))
    state = [half(2, 3, dtype=SINGLE) for _ in range(2)]
    assert_refused(
        "aclnnApplyAdamWV2",
        "m",
        "aclnnApplyAdamWV2.md",
        lambda: torch._fused_adamw_(
            [weight.data],
            [half(2, 3)],
            state[:1],
            state[1:],
            [],
            [torch.ones((), device="npu")],
            amsgrad=False,
            lr=0.1,
            beta1=0.9,
            beta2=0.9,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        ),
    )


def test_a_shape_that_depends_on_data_cannot_be_captured() -> None:
    x, graph = half(4), torch.npu.NPUGraph()
    with pytest.raises(RuntimeError, match="aclnnNonzero"), torch.npu.graph(graph):
        x.nonzero()
