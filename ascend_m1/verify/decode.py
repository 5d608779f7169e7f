"""Whole decode steps of a small model with the published structure: captured by every route, counted launch by launch.

Launches of a layer are those that a model with one more layer of its kind needs; bytes are those in the log of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..configuration_baichuan_m1 import BaichuanM1Config
from ..decode import Decoder
from ..graphs import CAPTURING, ROUTES
from ..inference import InferenceModel
from ..modeling_baichuan_m1 import BaichuanM1ForCausalLM
from ..paged import BLOCK_SIZE, PagedCache
from ..steps import Chunk, prefill_step

# In this order: npugraph_ex brings a TorchAir of its own, beside which the other does not load any more.
GRAPHS = tuple(sorted(route for route in ROUTES if route not in ("eager", "inductor")))
_NOT_LISTED = "the graph modes' documentation does not list this product"
_PROMPTS, _STEPS, _LONGEST = (2, 5, 9), 3, 256  # the last prompt is longer than the window
_WINDOW = 8
_DTYPE = torch.float16  # the one 16-bit dtype of every product


def routes(product: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """``graphs``, and from the host NPU's log ``launches_per_layer``, ``other_launches`` and ``bytes``."""
    from .probe import first_line, on_host

    model = build("gw")
    expected = run(model, "eager")
    graphs: dict[str, Any] = {}
    for route in GRAPHS:
        if product not in CAPTURING:
            graphs[route] = {"captured": None, "reason": _NOT_LISTED}
            continue
        try:
            got = run(model, route)
        except Exception as error:  # a route that does not capture is the finding
            graphs[route] = {"captured": False, "problem": first_line(error)}
            continue
        graphs[route] = {"captured": True, "equal": got[0] == expected[0], "logits_off": _off(got[1], expected[1])}
        tell(f"decode step through {route}")
    found: dict[str, Any] = {"graphs": graphs}
    if on_host():
        found |= count(product)
        found["bytes"] = moved(model)
        tell("launches and bytes")
    return found


def build(kinds: str, dtype: torch.dtype = _DTYPE) -> InferenceModel:
    """Random weights; a letter a layer: g global, w window. Head sizes and MLP as published, a tenth as wide."""
    torch.manual_seed(0)
    config = BaichuanM1Config(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1728,
        num_hidden_layers=len(kinds),
        num_attention_heads=2,
        num_key_value_heads=1,
        num_swa_attention_heads=4,
        num_swa_key_value_heads=2,
        sliding_window=_WINDOW,
        sliding_window_layers=[i for i, kind in enumerate(kinds) if kind == "w"],
        max_position_embeddings=512,
        initializer_range=0.1,
    )
    return InferenceModel(BaichuanM1ForCausalLM(config).to(dtype).eval().to("npu"), _LONGEST)


@torch.no_grad()
def run(model: InferenceModel, route: str) -> tuple[list[list[int]], Tensor]:
    """Prefill three prompts, then some steps: tokens by step, and the last logits."""
    device = model.embed.device
    cache = PagedCache(model.config, len(_PROMPTS), 2 * len(_PROMPTS), model.embed.dtype, device)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 4096, (length,), generator=generator).tolist() for length in _PROMPTS]
    chunks = [Chunk(row, [2 * row, 2 * row + 1], 0, prompt) for row, prompt in enumerate(prompts)]
    tokens = model(prefill_step(chunks, cache, device), cache).argmax(-1).tolist()
    decoder = Decoder(model, cache, len(_PROMPTS) + 1, _LONGEST, route)  # one more than there are: filled up
    made = [tokens]
    for step in range(_STEPS):
        held = [length + step for length in _PROMPTS]
        out = decoder.step([Chunk(row, [2 * row, 2 * row + 1], held[row], [made[-1][row]]) for row in range(len(held))])
        made.append(out.tokens.tolist())
    return made, out.logits.float().cpu()


@torch.no_grad()
def logged(model: InferenceModel, route: str, held: int) -> Any:
    """The log of one step of one sequence that holds so many tokens; captured before, if it is."""
    import ascend_m1_hostnpu

    blocks = list(range(-(-(held + 2) // BLOCK_SIZE)))
    cache = PagedCache(model.config, 1, len(blocks), model.embed.dtype, model.embed.device)
    decoder = Decoder(model, cache, 1, _LONGEST, route)
    decoder.step([Chunk(0, blocks, held, [5])])
    with ascend_m1_hostnpu.recording() as log:
        decoder.step([Chunk(0, blocks, held + 1, [5])])
    return log


def count(product: str) -> dict[str, Any]:
    """Launches of a captured step (of an eager one where nothing captures), by kind of layer and of the rest."""
    route = "npugraph" if product in CAPTURING else "eager"
    totals = {kinds: len(logged(build(kinds), route, 5).kernels) for kinds in ("gw", "gwg", "gww")}
    layer = {"global": totals["gwg"] - totals["gw"], "window": totals["gww"] - totals["gw"]}
    return {"launches_per_layer": layer, "other_launches": totals["gw"] - sum(layer.values()), "counted": route}


def moved(model: InferenceModel, held: int = 200) -> dict[str, Any]:
    """Bytes of one step of one sequence, from the log, and the least possible: weights and live cache once."""
    log = logged(model, "eager", held)
    least = least_bytes(model, held + 2)
    return {"moved": log.bytes, "least": least, "ratio": round(log.bytes / least, 4)}


def least_bytes(model: InferenceModel, length: int) -> int:
    """Every weight of a step once (of the embedding one row), and the keys and values that its query sees."""
    size = model.embed.element_size()
    weights = sum(parameter.nbytes for parameter in model.layers.parameters())
    weights += model.norm.nbytes + model.head.weight.nbytes + model.head_scale.nbytes + model.embed[0].nbytes
    cached = 0
    for spec in model.config.layer_specs:
        seen = length if spec.window is None else min(length, spec.window)
        cached += 2 * seen * spec.kv_heads * spec.head_dim * size
    return weights + cached


def _off(got: Tensor, expected: Tensor) -> float:
    """The largest difference of logits, relative to the largest logit."""
    return round(float((got - expected).abs().max() / expected.abs().max()), 6)
