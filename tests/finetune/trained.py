"""Adapters of ``ascend-m1 train`` and the tokens that whatever loads one must answer: PEFT's merged model in float32.

A few steps of a shipped recipe with a learning rate at which every answer changes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.cli.options import EMBEDDED
from ascend_m1_finetune.recipe import read_recipe
from ascend_m1_finetune.train import train as run

RECIPES = Path(__file__).parents[2] / "finetune" / "recipes"
CHANGES = (
    *("max_steps=10", "learning_rate=2e-2", "dataset=icd10_subcategories", "cutoff_len=64"),
    *("save_strategy=no", "disable_tqdm=true"),
)
# What the adapters are of, in the recipe's words. The second has parts of W_pack, so a rank and a scale of its own for
# the other matrices; the third leaves out one of the two that are multiplied as one.
TARGETS = {"all": "all", "roles": "q_proj,v_proj,mlp", "few": "k_proj,up_proj"}
PROMPTS = [[73, 500, 501, 502, 74], list(range(100, 190)), [900]]  # shorter and longer than the window of 32
COUNT = 16  # tokens of an answer


def train(folder: Path, *changes: str) -> Path:
    """The adapter's folder; what the command does with a recipe and words after it."""
    data = f"custom_dataset_info={RECIPES / 'data' / 'dataset_info.json'}"
    places = (f"output_dir={folder}", f"cache_dir={folder.with_name('tokens')}", data)
    run(read_recipe(RECIPES / "lora_tiny.yaml", [*places, *CHANGES, *changes]))
    return folder


def base() -> BaichuanM1ForCausalLM:
    return BaichuanM1ForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()


@torch.no_grad()
def greedy(model: Any) -> list[list[int]]:
    """The answers to ``PROMPTS``, each of ``COUNT`` tokens."""
    options = {"max_new_tokens": COUNT, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return [model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in PROMPTS]


@lru_cache
def plain() -> list[list[int]]:
    """Without an adapter."""
    return greedy(base())


def expected(folder: Path) -> list[list[int]]:
    """By PEFT's merged model. Every answer differs from that without the adapter."""
    answers = greedy(PeftModel.from_pretrained(base(), folder).merge_and_unload().eval())
    assert all(one != other for one, other in zip(answers, plain(), strict=True))
    return answers
