"""``conv_rope_cache`` as CANN graph operators, and the TorchAir backend that uses it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

from .in_place import keep_in_place
from .weights import keep_weights

# TorchAir's graph tensors and graphs are untyped.
GraphTensor = Any

_shared: weakref.WeakKeyDictionary[Any, dict[str, GraphTensor]] = weakref.WeakKeyDictionary()


def compiler_config() -> Any:
    """TorchAir's configuration for a decode step: a static graph, caches written in place."""
    import torchair

    config = torchair.CompilerConfig()
    config.post_grad_custom_pre_pass = prepare
    # Attention takes its lengths from device memory; with static shapes its tiling is then computed on the device.
    config.experimental_config.tiling_schedule_optimize = True
    return config


def prepare(module: GraphModule, example_inputs: Any = None, config: Any = None) -> None:
    """What a traced decode step needs before TorchAir converts it; TorchAir's custom FX pass."""
    keep_in_place(module)
    keep_weights(module)


def backend(config: Any = None) -> Callable[..., Any]:
    """A backend for ``torch.compile``: TorchAir's CANN graph with the converters of this package.

    Args:
        config: a ``torchair.CompilerConfig``; ``compiler_config()`` if None.
    """
    import torchair

    register_converters()
    made: Callable[..., Any] = torchair.get_npu_backend(compiler_config=compiler_config() if config is None else config)
    return made


@functools.cache
def register_converters() -> None:
    """Tell TorchAir how to convert this package's operators; needs torch_npu to be imported."""
    import torchair.ops._npu_fused_infer_attention_score_v2  # noqa: F401  defines attention with lengths on the device
    from torchair import register_fx_node_ge_converter

    register_fx_node_ge_converter(torch.ops.ascend_m1.conv_rope_cache_in_graph.default)(_conv_rope_cache)
    register_fx_node_ge_converter(torch.ops.ascend_m1.conv_rope_cache.default)(_refuse)
    register_fx_node_ge_converter(torch.ops.ascend_m1.linear_in_graph.default)(_linear)


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError(
        "conv_rope_cache: TorchAir would copy the caches; compile with ascend_m1_ops.cann_graph.backend(), "
        "or set cann_graph.prepare as the configuration's post_grad_custom_pre_pass"
    )


def _linear(x: GraphTensor, weight: GraphTensor, meta_outputs: Any = None) -> GraphTensor:
    from torchair._ge_concrete_graph import ge_apis as ge

    return ge.MatMul(x, weight, None, transpose_x2=True)


def _conv_rope_cache(
    packed: GraphTensor,
    weight: GraphTensor,
    cos: GraphTensor,
    sin: GraphTensor,
    positions: GraphTensor,
    slots: GraphTensor,
    starts: GraphTensor,
    cu_seqlens: GraphTensor,
    state_rows: GraphTensor,
    continues: GraphTensor,
    k_cache: GraphTensor,
    v_cache: GraphTensor,
    state: GraphTensor,
    meta_outputs: Any = None,
) -> tuple[GraphTensor, GraphTensor, GraphTensor, GraphTensor]:
    """Decode form: token i is the only one of sequence i (``starts`` and ``cu_seqlens`` are ranges, and not read).

    The graph operators know no padding: every slot and state row is in range, a padding token has ones to spare.
    """
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge._ge_graph import DataType, dont_prune_me

    tokens, width = packed.meta.shape
    kv_heads, head_dim = k_cache.meta.shape[2:]
    if state_rows.meta.shape[0] != tokens:
        raise RuntimeError(
            f"conv_rope_cache in a CANN graph: {tokens} tokens of {state_rows.meta.shape[0]} sequences; only decode "
            "(one token for each) is converted, run prefill outside the graph"
        )
    kv_width = 2 * kv_heads * head_dim
    q, kv = ge.SplitV(packed, [width - kv_width, kv_width], 1, num_split=2)
    kv = ge.Reshape(kv, [tokens, 2, kv_heads, head_dim])

    before = ge.GatherV2(state, state_rows, 0)
    new_state = ge.ScatterNdUpdate(state, ge.Reshape(state_rows, [tokens, 1]), kv, dependencies=[before])
    dont_prune_me(new_state)  # nothing in the graph reads it

    convolved = ge.Cast(_convolve(kv, before, weight, continues), dst_type=packed.dtype)
    k, v = (ge.Reshape(half, [tokens, kv_heads, head_dim]) for half in ge.SplitV(convolved, [1, 1], 1, num_split=2))
    tables = _table_rows(positions, cos), _table_rows(positions, sin)

    def rotate(heads: GraphTensor) -> GraphTensor:
        single = ge.Cast(heads, dst_type=DataType.DT_FLOAT)
        turned = ge.RotaryPositionEmbedding(single, *tables, mode=0)
        return ge.Cast(turned, dst_type=packed.dtype)

    new_k, new_v = ge.ScatterPaKvCache(
        rotate(k), k_cache, slots, v, v_cache, None, None, None, cache_mode="Norm", scatter_mode="None",
        strides=[1, 1], offsets=[0, 0],
    )  # fmt: skip
    q = rotate(ge.Reshape(q, [tokens, (width - kv_width) // head_dim, head_dim]))
    return q, new_k, new_v, new_state


def _convolve(kv: GraphTensor, before: GraphTensor, weight: GraphTensor, continues: GraphTensor) -> GraphTensor:
    """w[0] · before + w[1] · kv in float32 [tokens, 2, kv_heads, head_dim]; before counts where continues is not 0."""
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge._ge_graph import DataType

    def single(tensor: GraphTensor) -> GraphTensor:
        return ge.Cast(tensor, dst_type=DataType.DT_FLOAT)

    halves, kv_heads, _ = weight.meta.shape
    taps = ge.SplitV(single(weight), [1, 1], 2, num_split=2)
    previous, current = (ge.Reshape(tap, [1, halves, kv_heads, 1]) for tap in taps)
    known = _once(f"{continues.tensor} is known", lambda: _is_known(continues))
    # A choice, not a product: the state of a new sequence may hold anything.
    history = ge.SelectV2(known, single(before), ge.Const(0.0, dtype=DataType.DT_FLOAT))
    return ge.Add(ge.Mul(history, previous), ge.Mul(single(kv), current))


def _table_rows(positions: GraphTensor, table: GraphTensor) -> GraphTensor:
    """Rows of a rotary table for both halves of a head [tokens, 1, head_dim]; one for all layers of a kind."""
    from torchair._ge_concrete_graph import ge_apis as ge

    def make() -> GraphTensor:
        half = ge.GatherV2(table, positions, 0)
        full = ge.ConcatV2([half, half], 1, N=2)
        return ge.Reshape(full, [positions.meta.shape[0], 1, 2 * table.meta.shape[1]])

    return _once(f"{table.tensor} at {positions.tensor}", make)


def _is_known(continues: GraphTensor) -> GraphTensor:
    """Whether each sequence's state holds the token before [sequences, 1, 1, 1]."""
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge._ge_graph import DataType

    flags = ge.NotEqual(continues, ge.Const(0, dtype=DataType.DT_INT32))
    return ge.Reshape(flags, [continues.meta.shape[0], 1, 1, 1])


def _once(what: str, make: Callable[[], GraphTensor]) -> GraphTensor:
    """``make()``, made once in a graph for all its layers."""
    from torchair.ge._ge_graph import get_default_ge_graph

    made = _shared.setdefault(get_default_ge_graph(), {})
    if what not in made:
        made[what] = make()
    return made[what]
