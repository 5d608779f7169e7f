"""Keep weights as they are stored in a CANN graph.

``linear`` is traced as a product with the transposed weight, and TorchAir writes that down: a Transpose of every weight
in every step, which CANN's engine may or may not fuse into the product. ``keep_weights`` calls an operator of this
module instead, which is converted to one MatMul with ``transpose_x2``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.library import Library

_library = Library("ascend_m1", "FRAGMENT")
# x [rows, in], weight [out, in] -> [rows, out]. Only a CANN graph runs it.
_library.define("linear_in_graph(Tensor x, Tensor weight) -> Tensor")


@torch.library.register_fake("ascend_m1::linear_in_graph", lib=_library)
def _fake(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def keep_weights(module: GraphModule) -> None:
    """Replace products of a matrix with a transposed matrix; an FX pass that changes the module."""
    products = (torch.ops.aten.mm.default, torch.ops.aten.matmul.default)
    for node in list(module.graph.nodes):
        if node.target not in products:
            continue
        x, transposed = node.args
        weight = _transposed(transposed)
        if weight is None or x.meta["val"].dim() != 2:
            continue
        with module.graph.inserting_before(node):
            call = module.graph.call_function(torch.ops.ascend_m1.linear_in_graph.default, (x, weight))
        call.meta.update(node.meta)
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
        if not transposed.users:
            module.graph.erase_node(transposed)
    module.graph.lint()
    module.recompile()


def _transposed(node: Node) -> Node | None:
    """The matrix that a node transposes; None if it does something else."""
    swapped = {
        torch.ops.aten.t.default: (),
        torch.ops.aten.permute.default: ([1, 0],),
        torch.ops.aten.transpose.int: (0, 1),
    }
    if node.target not in swapped or tuple(node.args[1:]) != swapped[node.target]:
        return None
    source = node.args[0]
    assert isinstance(source, Node)
    return source if source.meta["val"].dim() == 2 else None
