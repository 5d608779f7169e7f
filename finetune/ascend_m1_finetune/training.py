"""The Trainer's arguments from a recipe, and what of its refusals is the recipe's fault."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from ascend_m1.errors import AscendM1Error, InputError

from .recipe import Recipe, typed
from .sharding import check_sharding, start_deepspeed
from .words import CHECKPOINTING

WSD = "wsd"
_WSD_WORDS = {"num_decay_steps": int, "min_lr_ratio": float}
_DEFAULTS = {
    "report_to": "none",
    "logging_steps": 10,
    "include_num_input_tokens_seen": "non_padding",
    "ddp_find_unused_parameters": False,  # each is used
}


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """What the recipe says, with the defaults of this project where it says nothing.

    Raises:
        InputError: the Trainer refuses a value, or DeepSpeed is asked for and not installed.
    """
    said = {key: value for key, value in recipe.training.items() if value is not None or key not in _DEFAULTS}
    values: dict[str, Any] = _DEFAULTS | said
    if values.get("lr_scheduler_type") == WSD:
        values["lr_scheduler_type"] = "constant"  # a placeholder: ``trainer.py`` makes the schedule
    if recipe.adaptive_update_factor is not None:
        values["max_grad_norm"] = 0.0
    values.setdefault(CHECKPOINTING, recipe.use_gradient_checkpointing)
    values.setdefault(f"{CHECKPOINTING}_kwargs", {"use_reentrant": False})
    values.setdefault("use_cpu", not torch.accelerator.is_available())  # else the Trainer refuses bf16
    values |= {"output_dir": recipe.output_dir, "remove_unused_columns": False, "do_train": True}
    if values.get("deepspeed") and find_spec("deepspeed") is None:
        raise InputError("deepspeed not installed: pip install deepspeed, or leave deepspeed out")
    with refusals():
        arguments = TrainingArguments(**values)
    for name in arguments.report_to:
        if name not in get_available_reporting_integrations():
            raise InputError(f"report_to: {name!r}: unknown or not installed: install it, or say none")
    check_sharding(arguments)
    start_deepspeed(arguments)
    return arguments


def wsd_words(recipe: Recipe, arguments: TrainingArguments) -> dict[str, Any] | None:
    """The WSD schedule's own numbers; None: the recipe names another schedule.

    Raises:
        InputError: an unknown word, or a value of another type.
    """
    if recipe.training.get("lr_scheduler_type") != WSD:
        return None
    given: dict[str, Any] = arguments.lr_scheduler_kwargs or {}
    for key in given:
        if key not in _WSD_WORDS:
            near = difflib.get_close_matches(str(key), _WSD_WORDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"{WSD} knows {' and '.join(_WSD_WORDS)}"
            raise InputError(f"lr_scheduler_kwargs has {key!r}: {hint}")
    words = {key: typed(f"lr_scheduler_kwargs: {key}", value, _WSD_WORDS[key]) for key, value in given.items()}
    return {key: value for key, value in words.items() if value is not None}


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Around calls of the Trainer that only read the recipe's words: what they raise is an InputError of one line."""
    try:
        yield
    except AscendM1Error:
        raise
    except (TypeError, ValueError, ImportError) as error:
        raise InputError(f"the Trainer refuses the recipe: {' '.join(str(error).split())}") from error
