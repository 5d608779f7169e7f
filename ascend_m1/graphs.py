"""The ways to run a decode step as one graph. Each is a function from a decoder to what replays it.

On an NPU attention wants its lengths as numbers on the host: a captured graph is told the new ones at every replay
(NPUGraph by ``update``, npugraph_ex through integer inputs), a CANN graph reads them from the device, as do graphs of
plain torch operators.
"""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch

from ascend_m1_ops.conv_rope_cache.npu import why_composed
from ascend_m1_ops.products.npu import product

from .device import is_npu
from .errors import InputError

if TYPE_CHECKING:
    from .decode import Decoder
    from .inference import InferenceModel

# TorchAir's documentation lists A2, A3 and 950; torch_npu's graphs are documented for the same.
CAPTURING = ("A2", "A3", "950")
Lengths = list[int] | None
_log = logging.getLogger(__name__)
_numbers = itertools.count()


@dataclass(frozen=True)
class Logits:
    """Of one step: the likeliest tokens int64 [batch] and logits [batch, vocab]."""

    tokens: Tensor
    logits: Tensor


Replay = Callable[[list[int], list[int]], Logits]


def eager(decoder: Decoder, lengths: list[int], rings: list[int]) -> Replay:
    """No graph: every operator is launched by the host."""
    return decoder.forward


def inductor(decoder: Decoder, lengths: list[int], rings: list[int]) -> Replay:
    """Compiled by torch's own compiler: for a CPU."""
    return _on_device(torch.compile(_Step(decoder).compilable(), fullgraph=True, dynamic=False))


def npugraph(decoder: Decoder, lengths: list[int], rings: list[int]) -> Replay:
    """torch_npu's NPUGraph: launches are captured as they are and replayed by the device."""
    device = torch.get_device_module(decoder.model.embed.device)
    decoder.forward(lengths, rings)  # what is made on first use (workspaces, kernels) is made before the capture
    fused = [spec for spec in decoder.model.config.layer_specs if decoder.lengths_on_host(spec)]
    graph = device.NPUGraph()
    with _garbage_stays(), device.graph(graph, auto_dispatch_capture=True):
        out = decoder.forward(lengths, rings)

    def replay(lengths: list[int], rings: list[int]) -> Logits:
        graph.replay()
        if fused:  # the replay waits before each of these attentions until it is told
            full, ring = {"actual_seq_kvlen": lengths}, {"actual_seq_kvlen": rings}
            graph.update(cpu_update_input=[full if spec.window is None else ring for spec in fused])
        return out

    return replay


def npugraph_ex(decoder: Decoder, lengths: list[int], rings: list[int]) -> Replay:
    """torch.compile with torch_npu's npugraph_ex: traced, simplified, captured, replayed."""
    step, compiled = _Step(decoder).compilable(), None
    if decoder.cache_dir is None:
        compiled = torch.compile(step, backend="npugraph_ex", fullgraph=True, dynamic=False)
    else:
        inference = torch.get_device_module(decoder.model.embed.device).npugraph_ex.inference
        compiled = inference.cache_compile(step, dynamic=False, cache_dir=decoder.cache_dir)
    # The lengths alone are inputs that change; everything else stays a constant of the graph.
    numbers: Any = torch.compiler.config.patch(dynamic_sources=r"L\['(lengths|rings)'\]\[\d+\]")  # type: ignore[attr-defined]
    # Attention returns the tensors it is told to write: torch warns of it, or with CI in the environment fails.
    aliases: Any = functorch.patch(check_custom_op_aliasing=False)

    def replay(lengths: list[int], rings: list[int]) -> Logits:
        with numbers, aliases:
            return Logits(*compiled(lengths, rings))

    with _garbage_stays():
        replay(lengths, rings)
    return replay


@contextmanager
def _garbage_stays() -> Iterator[None]:
    """Capture: if Python destroys an older graph meanwhile, torch_npu 2.13 loses the one in the making."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def cann(decoder: Decoder, lengths: list[int], rings: list[int]) -> Replay:
    """TorchAir's CANN graph: compiled by the graph engine, tiling and fusion included.

    Raises:
        InputError: npugraph_ex came first in this process.
    """
    from ascend_m1_ops import cann_graph

    if _npugraph_ex_came_first():
        raise InputError(
            "graph 'cann' after npugraph_ex: torch_npu cannot load TorchAir any more: make the first CANN graph before "
            "npugraph_ex is used, or use another process"
        )
    step = _Step(decoder).compilable()
    if decoder.cache_dir is None:
        return _on_device(torch.compile(step, backend=cann_graph.backend(), fullgraph=True, dynamic=False))
    import torchair

    cann_graph.register_converters()
    return _on_device(
        torchair.inference.cache_compile(
            step, config=cann_graph.compiler_config(), dynamic=False, cache_dir=decoder.cache_dir
        )
    )


def _npugraph_ex_came_first() -> bool:
    """Whether a decomposition that both register is npugraph_ex's: TorchAir does not look, and fails."""
    registered = torch.ops.aten.to.other.py_kernels.get(torch._C.DispatchKey.AutogradPrivateUse1)
    return getattr(registered, "__module__", "").startswith("npugraph_ex")


class _Step(nn.Module):
    """A decode step as the vendor's cache of compiled graphs wants it: a method of a module that has the weights."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.model, self.decoder = decoder.model, decoder

    def decode(self, lengths: Lengths, rings: Lengths) -> tuple[Tensor, Tensor]:
        out = self.decoder.forward(lengths, rings)
        return out.tokens, out.logits

    def compilable(self) -> MethodType:
        """``decode`` with code of its own: torch compiles one code eight times at most, and searches them at each call.

        Another name makes it differ, for the vendor's cache compares codes by value.
        """
        code = _Step.decode.__code__.replace(co_name=f"decode_{next(_numbers)}")
        return MethodType(FunctionType(code, globals(), "decode"), self)

    def extra_repr(self) -> str:
        """Everything that a graph depends on: a compiled one is found again by this text."""
        return self.decoder.signature()


def _on_device(compiled: Callable[[Lengths, Lengths], tuple[Tensor, Tensor]]) -> Replay:
    compiled(None, None)
    return lambda lengths, rings: Logits(*compiled(None, None))


ROUTES: dict[str, Callable[[Decoder, list[int], list[int]], Replay]] = {
    "eager": eager,
    "inductor": inductor,
    "npugraph": npugraph,
    "npugraph_ex": npugraph_ex,
    "cann": cann,
}


def choose_graph(wanted: str | None, model: InferenceModel) -> str:
    """The route for this model, where it is; None: the fastest that needs no compiler.

    Raises:
        InputError: the route is unknown, or cannot be used there.
    """
    if wanted is None:
        if not is_npu(model.embed.device):
            return "eager"
        reason = why_not("npugraph", model)
        if reason is not None:
            _log_eager(reason)
        return "npugraph" if reason is None else "eager"
    if wanted not in ROUTES:
        raise InputError(f"graph {wanted!r} is not known: use one of {', '.join(ROUTES)}")
    reason = why_not(wanted, model)
    if reason is not None:
        raise InputError(f"graph {wanted!r} cannot be used here: {reason}: use 'eager', or leave the choice open")
    return wanted


def why_not(graph: str, model: InferenceModel) -> str | None:
    """The reason why a route cannot run this model where it is; None: it can."""
    on_npu = is_npu(model.embed.device)
    if graph == "eager":
        return None
    if graph == "inductor":
        return "it compiles for a CPU or a GPU, and the model is on an NPU" if on_npu else None
    if not on_npu:
        return f"it needs an NPU, and the model is on {model.embed.device.type}"
    if product() not in CAPTURING:
        return f"the graph modes' documentation does not list {product()}"
    if graph == "cann":
        return None  # made of graph operators, none of which waits
    for dim in {spec.head_dim for spec in model.config.layer_specs}:
        packed, cache = model.embed.new_empty(0, dim), model.embed.new_empty(0, 0, 0, dim)
        reason = why_composed(packed, model.rope[f"cos_{dim}"], cache)
        if reason is not None:
            return f"conv_rope_cache is composed of torch calls that wait for the host: {reason}"
    return None


@cache
def _log_eager(reason: str) -> None:
    _log.warning("decode steps are not captured: %s", reason)
