"""Where a run begins: in an empty folder, or at the last checkpoint of the same recipe."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ascend_m1.checkpoint_files import read_json
from ascend_m1.errors import InputError
from ascend_m1.writing import writing

from .recipe import Recipe
from .trainer import PART

_RECORD = "recipe.json"
QUANTISED = "base-4bit"  # of load_in_4bit
# What may change between a checkpoint and its resumption.
_FREE = ("output_dir", "overwrite_output_dir", "cache_dir", "adapter_models")
# Of the Trainer's arguments, those that do not change what is computed; another device may round otherwise.
_FREE_TRAINING = (
    *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter"),
    *("log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen"),
    *("save_strategy", "save_steps", "save_total_limit", "save_on_each_node", "save_only_model"),
    *("enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
    *("hub_always_push", "hub_revision", "resume_from_checkpoint", "use_cpu", "skip_memory_metrics"),
    *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("ddp_backend", "ddp_timeout", "local_rank", "torch_empty_cache_steps"),
)


def finished_steps(recipe: Recipe) -> int | None:
    """The updates of a run of this recipe that has come to its end and is written; None: there is something to do.

    Raises:
        InputError: the folder holds the checkpoints of another recipe.
    """
    folder = Path(recipe.output_dir)
    asked = recipe.training.get("resume_from_checkpoint")
    # The report is written last.
    if recipe.overwrite_output_dir or isinstance(asked, str) or not (folder / "report.html").is_file():
        return None
    last = get_last_checkpoint(str(folder))
    if last is None:
        return None
    _check_same(folder, _record(recipe))
    state = read_json(Path(last) / "trainer_state.json")
    steps: int = state["global_step"]
    return steps if steps >= state["max_steps"] else None


def starting_point(recipe: Recipe, main: bool) -> str | None:
    """The checkpoint to go on from; the folder is made, and cleared where the recipe says so.

    Args:
        main: whether this process writes; the others wait for it.

    Raises:
        InputError: the folder holds something else, or the checkpoints of another recipe.
    """
    folder = Path(recipe.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir {folder} is a file: give a folder")
    record = _record(recipe)
    asked = recipe.training.get("resume_from_checkpoint")
    if isinstance(asked, str) and asked.lower() not in ("true", "false"):
        if not (Path(asked) / "trainer_state.json").is_file():
            raise InputError(f"resume_from_checkpoint {asked}: holds no trainer_state.json: give a checkpoint's folder")
        return asked
    if main and recipe.overwrite_output_dir:
        _remove_results(folder)
    # Another process may look while this one still clears.
    last = None if recipe.overwrite_output_dir or not folder.is_dir() else get_last_checkpoint(str(folder))
    if last is not None:
        _check_same(folder, record)
    elif main and not recipe.overwrite_output_dir and _holds_something(folder):
        raise InputError(
            f"output_dir {folder} is not empty and has no checkpoint: give another, or set overwrite_output_dir: true"
        )
    if main:
        shutil.rmtree(folder / PART, ignore_errors=True)  # of a killed run
    if main and last is None:
        if not _begun_on(folder, record):
            shutil.rmtree(folder / QUANTISED, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{_RECORD}.new"
        with writing(folder, beside, "then run it again"):
            beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, folder / _RECORD)
    return last


def _record(recipe: Recipe) -> dict[str, Any]:
    """As JSON has it."""
    record: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return record


def _begun_on(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the folder was begun on the recipe's model."""
    begun = read_json(folder / _RECORD) if (folder / _RECORD).is_file() else {}
    return all(key in begun and begun[key] == record[key] for key in ("model_id", "model_name_or_path"))


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(path.name not in (PART, _RECORD, QUANTISED) for path in folder.iterdir())


def _remove_results(folder: Path) -> None:
    """What an earlier run wrote, and nothing else."""
    for pattern in ("checkpoint-*", PART, QUANTISED):
        for path in folder.glob(pattern):
            shutil.rmtree(path)
    for pattern in ("adapter_*", "*.safetensors*", "config.json", "report.html", _RECORD):
        for path in folder.glob(pattern):
            path.unlink()


def _check_same(folder: Path, record: dict[str, Any]) -> None:
    if not (folder / _RECORD).is_file():
        return
    begun = read_json(folder / _RECORD)
    fixed = {key: (begun[key], value) for key, value in record.items() if key in begun and key not in _FREE}
    old, new = fixed.pop("training", ({}, {}))
    unsaid = {field.name: _default(field) for field in dataclasses.fields(TrainingArguments)}
    for key in sorted((old.keys() | new.keys()) - {*_FREE_TRAINING}):
        fixed[key] = old.get(key, unsaid.get(key)), new.get(key, unsaid.get(key))
    for key, (before, now) in fixed.items():
        if before != now:
            raise InputError(
                f"output_dir {folder}: was begun with {key}={before!r}, the recipe says {now!r}: give another "
                "output_dir, or set overwrite_output_dir: true"
            )


def _default(field: dataclasses.Field[Any]) -> Any:
    """As JSON has it."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return None if value is dataclasses.MISSING else value
