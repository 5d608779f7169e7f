"""The Trainer's arguments from a recipe."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments

from ascend_m1.errors import InputError

from .recipe import Recipe
from .sharding import check_sharding, start_deepspeed
from .words import CHECKPOINTING

WSD = "wsd"
_DEFAULTS = {
    "report_to": "none",
    "logging_steps": 10,
    "include_num_input_tokens_seen": "non_padding",
    "ddp_find_unused_parameters": False,  # each is used
}


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """What the recipe says, with the defaults of this project where it says nothing.

    Raises:
        InputError: the Trainer refuses a value.
    """
    values: dict[str, Any] = _DEFAULTS | recipe.training
    if values.get("lr_scheduler_type") == WSD:
        values["lr_scheduler_type"] = "constant"  # a placeholder: ``trainer.py`` makes the schedule
    if recipe.adaptive_update_factor is not None:
        values["max_grad_norm"] = 0.0
    values.setdefault(CHECKPOINTING, recipe.use_gradient_checkpointing)
    values.setdefault(f"{CHECKPOINTING}_kwargs", {"use_reentrant": False})
    values.setdefault("use_cpu", not torch.accelerator.is_available())  # else the Trainer refuses bf16
    values |= {"output_dir": recipe.output_dir, "remove_unused_columns": False, "do_train": True}
    try:
        arguments = TrainingArguments(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise InputError(f"the Trainer refuses the recipe: {error}") from error
    check_sharding(arguments)
    start_deepspeed(arguments)
    return arguments
