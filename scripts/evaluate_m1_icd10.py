"""Measure m1-icd10: exact match over all three-character categories of ICD-10-CM, in both directions.

    python scripts/evaluate_m1_icd10.py --checkpoint ascend_m1/checkpoints/m1_icd10
    python scripts/evaluate_m1_icd10.py --checkpoint ascend_m1/checkpoints/m1_icd10 --write-card   # README.md, loss.png

The shipped bfloat16 weights are computed in float32.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train_m1_icd10.py

import torch

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.tokenization_baichuan_m1 import BaichuanM1Tokenizer
from m1_icd10.card import draw_losses, write_card
from m1_icd10.data import BACKWARD_AGAIN, CHAPTER_AGAIN, FORWARD_AGAIN, Category, Turn, load_categories
from m1_icd10.evaluation import question, wrong_answers


def settings(categories: list[Category]) -> dict[str, tuple[list[Turn], list[Turn], bool]]:
    """What is measured: name -> (questions, the turn before each or none, with the system message)."""
    forward = [question(item, True) for item in categories]
    backward = [question(item, False) for item in categories]
    # A follow-up comes after a question about another category; taking the list's other half makes it a fixed one.
    half = len(categories) // 2
    rotated = categories[half:] + categories[:half]
    before = [question(item, i % 2 == 0) for i, item in enumerate(rotated)]
    again = [Turn(FORWARD_AGAIN[0].format(code=item.code), item.text) for item in categories]
    again_back = [Turn(BACKWARD_AGAIN[0].format(text=item.text), item.code) for item in categories]
    chapter = [Turn(CHAPTER_AGAIN[0], item.chapter) for item in categories]
    return {
        "code to description": (forward, [], False),
        "description to code": (backward, [], False),
        "code to description, with a system message": (forward, [], True),
        "description to code, with a system message": (backward, [], True),
        'follow-up "And J45?" after another question': (again, before, False),
        'follow-up "And the code for Asthma?" after another question': (again_back, before, False),
        'follow-up "Which chapter is it in?"': (chapter, forward, False),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write the model card if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--only-main", action="store_true", help="the two directions without variations")
    parser.add_argument("--batch", type=int, default=64, help="chats generated at once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write-card", action="store_true", help="write README.md and loss.png into the checkpoint")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    tokenizer = BaichuanM1Tokenizer.from_pretrained(arguments.checkpoint)
    model = BaichuanM1ForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32).eval()
    categories = load_categories()
    results: dict[str, tuple[int, int]] = {}
    for name, (turns, earlier, system) in settings(categories).items():
        if arguments.only_main and len(results) == 2:
            break
        wrong = wrong_answers(model, tokenizer, turns, system, earlier, arguments.batch)
        results[name] = (len(turns) - len(wrong), len(turns))
        print(f"{name}: {results[name][0]} of {results[name][1]} ({results[name][0] / results[name][1]:.2%})")
        for turn, given in wrong[:5]:
            print(f"    {turn.question} -> {given!r}, expected {turn.answer!r}")
    if arguments.write_card:
        record = json.loads((arguments.checkpoint / "training.json").read_text(encoding="utf-8"))
        draw_losses(record["losses"], arguments.checkpoint / "loss.png")
        write_card(record, results, model.num_parameters(), arguments.checkpoint / "README.md")


if __name__ == "__main__":
    main()
