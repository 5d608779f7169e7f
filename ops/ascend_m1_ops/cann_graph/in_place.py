"""Keep in-place operators in place in a CANN graph.

A traced graph has no mutation: torch turns an operator that writes into its arguments into ``auto_functionalized_v2``,
which takes the tensors (its bases) and returns new versions of them, and copies those back at the end. TorchAir copies
every base (TensorMove) before it converts such a node, and undoes that only for one graph operator with one reader.
``keep_in_place`` runs before the conversion. It calls instead an operator of this module, whose converter writes into
the bases and returns them: readers depend on the write through an ordinary edge, and nothing is copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.library import Library

CACHES = ("k_cache", "v_cache", "state")

_library = Library("ascend_m1", "FRAGMENT")
# Returns (q, k_cache, v_cache, state). Only a CANN graph runs it: there is no kernel, so an eager call fails.
_library.define(
    "conv_rope_cache_in_graph(Tensor packed, Tensor weight, Tensor cos, Tensor sin, Tensor positions, Tensor slots,"
    " Tensor starts, Tensor cu_seqlens, Tensor state_rows, Tensor continues,"
    " Tensor k_cache, Tensor v_cache, Tensor state) -> (Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("ascend_m1::conv_rope_cache_in_graph", lib=_library)
def _fake(
    packed: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    starts: Tensor,
    cu_seqlens: Tensor,
    state_rows: Tensor,
    continues: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kv_heads, head_dim = k_cache.shape[2:]
    q = packed.new_empty(packed.shape[0], packed.shape[1] // head_dim - 2 * kv_heads, head_dim)
    return q, torch.empty_like(k_cache), torch.empty_like(v_cache), torch.empty_like(state)


def keep_in_place(module: GraphModule) -> None:
    """Replace the functional form of ``conv_rope_cache`` and drop the copies back; an FX pass that changes the module.

    Raises:
        RuntimeError: if a cache is a view of another tensor: only whole tensors stay in place.
    """
    functional = torch.ops.higher_order.auto_functionalized_v2
    for node in list(module.graph.nodes):
        if node.target is functional and node.args[0] is torch.ops.ascend_m1.conv_rope_cache.default:
            _replace(module, node)
    module.graph.lint()
    module.recompile()


def _replace(module: GraphModule, node: Node) -> None:
    arguments = dict(node.kwargs)
    bases = arguments.pop("_all_bases")
    assert isinstance(bases, (list, tuple))
    # Index of a base -> its place among the outputs.
    place: dict[Any, int] = {arguments.pop(f"_{name}_base_index"): index for index, name in enumerate(CACHES, start=1)}
    views = sorted(name for name in arguments if name.startswith("_"))
    if views or len(place) != len(CACHES):
        raise RuntimeError(
            f"conv_rope_cache in a CANN graph: a cache is a view ({', '.join(views) or 'of a shared tensor'}); "
            "pass k_cache, v_cache and state as whole tensors of their own"
        )
    for index, position in place.items():
        arguments[CACHES[position - 1]] = bases[index]
    names = [argument.name for argument in torch.ops.ascend_m1.conv_rope_cache_in_graph.default._schema.arguments]
    with module.graph.inserting_before(node):
        call = module.graph.call_function(
            torch.ops.ascend_m1.conv_rope_cache_in_graph.default, tuple(arguments[name] for name in names)
        )
    for user in list(node.users):
        # Output 0 is q, output 1 + i the new version of base i.
        index = user.args[1]
        assert isinstance(index, int)
        if index:
            _drop_copies(user, bases[index - 1])
            user.args = (call, place[index - 1])
        else:
            user.args = (call, 0)
    module.graph.erase_node(node)


def _drop_copies(new: Node, base: object) -> None:
    for user in list(new.users):
        if user.target is torch.ops.aten.copy_.default and user.args[:2] == (base, new) and not user.users:
            user.graph.erase_node(user)
