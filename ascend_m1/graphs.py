"""The ways to run a decode step as one graph. Each is a function from a decoder to what replays it.

On an NPU attention wants its lengths as numbers on the host: a captured graph is told the new ones at every replay
(NPUGraph by ``update``, npugraph_ex through integer inputs), a CANN graph reads them from the device, as do graphs of
plain torch operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .decode import Decoder

Lengths = list[int] | None


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
    return _on_device(torch.compile(_Step(decoder).decode, fullgraph=True, dynamic=False))


def npugraph(decoder: Decoder, lengths: list[int], rings: list[int]) -> Replay:
    """torch_npu's NPUGraph: launches are captured as they are and replayed by the device."""
    device = torch.get_device_module(decoder.model.embed.device)
    decoder.forward(lengths, rings)  # what is made on first use (workspaces, kernels) is made before the capture
    fused = [spec for spec in decoder.model.config.layer_specs if decoder.lengths_on_host(spec)]
    graph = device.NPUGraph()
    with device.graph(graph, auto_dispatch_capture=True):
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
    step, compiled = _Step(decoder), None
    if decoder.cache_dir is None:
        compiled = torch.compile(step.decode, backend="npugraph_ex", fullgraph=True, dynamic=False)
    else:
        inference = torch.get_device_module(decoder.model.embed.device).npugraph_ex.inference
        compiled = inference.cache_compile(step.decode, dynamic=False, cache_dir=decoder.cache_dir)
    # The lengths alone are inputs that change; everything else stays a constant of the graph.
    numbers: Any = torch.compiler.config.patch(dynamic_sources=r"L\['(lengths|rings)'\]\[\d+\]")  # type: ignore[attr-defined]

    def replay(lengths: list[int], rings: list[int]) -> Logits:
        with numbers:
            return Logits(*compiled(lengths, rings))

    replay(lengths, rings)
    return replay


def cann(decoder: Decoder, lengths: list[int], rings: list[int]) -> Replay:
    """TorchAir's CANN graph: compiled by the graph engine, tiling and fusion included."""
    from ascend_m1_ops import cann_graph

    step = _Step(decoder)
    if decoder.cache_dir is None:
        return _on_device(torch.compile(step.decode, backend=cann_graph.backend(), fullgraph=True, dynamic=False))
    import torchair

    cann_graph.register_converters()
    return _on_device(
        torchair.inference.cache_compile(
            step.decode, config=cann_graph.compiler_config(), dynamic=False, cache_dir=decoder.cache_dir
        )
    )


class _Step(nn.Module):
    """A decode step as the vendor's cache of compiled graphs wants it: a method of a module that has the weights."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.model, self.decoder = decoder.model, decoder

    def decode(self, lengths: Lengths, rings: Lengths) -> tuple[Tensor, Tensor]:
        out = self.decoder.forward(lengths, rings)
        return out.tokens, out.logits

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
