"""What the tiny recipes teach and what they cost: exact match on the new facts and on old ones, before and after.

    python scripts/finetune_facts.py                      # LoRA, then QLoRA
    python scripts/finetune_facts.py lora_tiny --keep out

New: the 200 subcategories of the recipes' data. Old: 300 questions about categories, half of them not in the recipes'
reminders. Answers are greedy, in float32, and count if every letter is right. Beside the time by the clock stands the
processors' time of the training process. On a busy machine set OMP_WAIT_POLICY=PASSIVE, see docs/finetune.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.adapters import merge_adapter, read_adapter
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.tokenization_baichuan_m1 import BaichuanM1Tokenizer
from m1_icd10.data import Turn, load_categories
from m1_icd10.evaluation import question, wrong_answers

ROOT = Path(__file__).parents[1]
DATA = ROOT / "finetune" / "recipes" / "data"
THREADS = 2


def shipped(name: str) -> list[Turn]:
    """The questions and answers of a file of the recipes."""
    rows = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    return [Turn(row["instruction"], row["output"]) for row in rows]


def old_questions() -> list[Turn]:
    """150 that the recipes repeat and 150 that they do not."""
    reminders = set(shipped("icd10_categories.jsonl"))
    everything = [question(item, forward) for item in load_categories() for forward in (True, False)]
    chance = random.Random(1)
    others = [turn for turn in everything if turn not in reminders]
    return chance.sample(sorted(reminders, key=lambda turn: turn.question), 150) + chance.sample(others, 150)


def exact_match(adapter: Path | None, turns: list[Turn]) -> float:
    """Percent of answers that are right to the letter."""
    model = BaichuanM1ForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()
    if adapter is not None:
        merge_adapter(model, read_adapter(adapter, model.config))
    tokenizer = BaichuanM1Tokenizer.from_pretrained(EMBEDDED)
    return 100 * (1 - len(wrong_answers(model, tokenizer, turns, system=False)) / len(turns))


def train(recipe: str, folder: Path) -> tuple[float, float]:
    """By the command, its start included: seconds by the clock, and of the processors for this process alone."""
    command = [sys.executable, "-m", "ascend_m1", "train", f"finetune/recipes/{recipe}.yaml"]
    words = [f"output_dir={folder}", "overwrite_output_dir=true"]
    own = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    before, begun = os.times(), time.perf_counter()
    subprocess.run([*command, *words], cwd=ROOT, env=own, check=True, capture_output=True)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - begun, processor


def main() -> None:
    """Train by each recipe, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["lora_tiny", "qlora_tiny"])
    parser.add_argument("--keep", type=Path, help="a folder for the adapters (default: none)")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    new, old = shipped("icd10_subcategories.jsonl"), old_questions()
    print(f"{'before':12} new {exact_match(None, new):6.2f}%  old {exact_match(None, old):6.2f}%", flush=True)
    folder = arguments.keep or Path(tempfile.mkdtemp())
    for recipe in arguments.recipes:
        adapter = folder / recipe
        wall, processor = train(recipe, adapter)
        print(
            f"{recipe:12} new {exact_match(adapter, new):6.2f}%  old {exact_match(adapter, old):6.2f}%  "
            f"{wall:.0f} s, of {THREADS} threads {processor:.0f} s, {os.cpu_count()} cores, load "
            f"{os.getloadavg()[0]:.1f}, torch {torch.__version__}",
            flush=True,
        )
    if arguments.keep is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
