"""The golden checkpoints: an independent float64 forward pass' logits and greedy continuations."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import mindspore
import numpy as np
from mindspore import Tensor, float32, int32
from transformers import GenerationConfig

from ascend_m1.checkpoint_files import read_json
from ascend_m1.configuration_baichuan_m1 import BaichuanM1Config
from ascend_m1.mindspore.model import Core, graphs
from ascend_m1.mindspore.runner import Graphs, capacity_for, generate_ids
from ascend_m1.mindspore.weights import Weights

ROOT = Path(__file__).parent.parent / "golden"
CASES = sorted(path.name for path in ROOT.iterdir() if path.is_dir())
# float32 against float64: the largest error seen is 4e-6; the rest is for other processors' order of summation.
TOLERANCE = 2e-5


class Prompt(NamedTuple):
    """ids [L], logits [L, vocab], the greedy continuation [24]."""

    ids: list[int]
    logits: np.ndarray
    greedy: list[int]


@lru_cache
def load_prompts(case: str) -> tuple[Prompt, ...]:
    """Shortest first."""
    stored = np.load(ROOT / case / "expected.npz")
    lengths = sorted(int(name[4:]) for name in stored.files if name.startswith("ids_"))
    return tuple(
        Prompt(stored[f"ids_{n}"].tolist(), stored[f"logits_{n}"], stored[f"greedy_{n}"].tolist()) for n in lengths
    )


def load_core(case: str, capacity: int | None = None, dtype: Any = float32, fused: bool = False) -> Core:
    """With room for the longest prompt and its continuation, unless told otherwise."""
    folder = ROOT / case
    config = BaichuanM1Config.from_dict(read_json(folder / "config.json"))
    longest = load_prompts(case)[-1]
    needed = capacity_for(config.max_position_embeddings, len(longest.ids) + len(longest.greedy))
    return Core(config, Weights(folder, config), capacity or needed, dtype, fused)


@lru_cache
def load_graphs(case: str) -> Graphs:
    """Compiled."""
    return graphs(load_core(case), "float32")


def greedy(graphs_: Graphs, prompt: Prompt) -> list[int]:
    """As many tokens as the golden continuation has."""
    config = GenerationConfig(max_new_tokens=len(prompt.greedy), do_sample=False)
    return list(generate_ids(graphs_, prompt.ids, config))


def compilations() -> int:
    """How many graphs were compiled in this process, by the key of MindSpore's own cache (private)."""
    return len(mindspore.graph.api.ms_compile_cache)


def row(values: list[int]) -> Tensor:
    """[1, n] int32."""
    return Tensor([values], int32)
