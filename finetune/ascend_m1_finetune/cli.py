"""``ascend-m1 train``: a recipe."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ascend_m1.cli import out_of_memory
from ascend_m1.cli.options import note, require_extra
from ascend_m1.errors import InputError

_LESS = (
    "lower per_device_train_batch_size or cutoff_len, leave use_gradient_checkpointing on, say load_in_4bit with LoRA, "
    "or share all weights among devices by fsdp or deepspeed; see `ascend-m1 plan`"
)
_NEEDED = ("accelerate", "datasets", "matplotlib", "peft", "yaml")


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "train",
        help="finetune by a recipe",
        description="Trains as a recipe says, one of openMind's or of finetune/recipes, and writes the adapter or the "
        "model into its output_dir. The same command goes on where a stopped run left off. Exit status 0: it is "
        "trained and written.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    parser.add_argument("changes", nargs="*", default=[], metavar="KEY=VALUE", help="in place of what the recipe says")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The recipe is looked at before anything is loaded."""
    require_extra("finetune", _NEEDED)
    try:
        return _run(arguments)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"out of memory: {_LESS}") from error


def _run(arguments: argparse.Namespace) -> int:
    from .recipe import read_recipe

    recipe = read_recipe(Path(arguments.recipe), arguments.changes)
    option = "--adapter" if recipe.finetuning_type == "lora" else "--model"
    folder, ask = recipe.output_dir, f"ask it with `ascend-m1 generate {option} {recipe.output_dir}`"
    from .resume import finished_steps

    steps = finished_steps(recipe)
    if steps is not None:
        if os.environ.get("RANK", "0") == "0":  # torchrun starts several
            note(f"{folder}: finished already, {steps} updates; {ask}, or begin anew with overwrite_output_dir=true")
        return 0
    from .train import train

    if train(recipe).args.should_save:
        note(f"{folder}: written; {ask}")
    return 0
