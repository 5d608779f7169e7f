"""Where a run begins: in an empty folder, or at the last checkpoint of the same recipe."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from ascend_m1.checkpoint_files import read_json
from ascend_m1.errors import InputError

from .recipe import Recipe
from .trainer import PART

_RECORD = "recipe.json"
# What may change between a checkpoint and its resumption.
_FREE = ("output_dir", "overwrite_output_dir", "cache_dir", "training", "adapter_models")


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
    record = json.loads(json.dumps(dataclasses.asdict(recipe)))
    asked = recipe.training.get("resume_from_checkpoint")
    if isinstance(asked, str) and asked.lower() not in ("true", "false"):
        if not (Path(asked) / "trainer_state.json").is_file():
            raise InputError(f"resume_from_checkpoint {asked}: holds no trainer_state.json: give a checkpoint's folder")
        return asked
    if main and recipe.overwrite_output_dir:
        _remove_results(folder)
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if last is not None:
        _check_same(folder, record)
    elif main and not recipe.overwrite_output_dir and _holds_something(folder):
        raise InputError(
            f"output_dir {folder} is not empty and has no checkpoint: give another, or set overwrite_output_dir: true"
        )
    if main and last is None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{_RECORD}.new").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(folder / f"{_RECORD}.new", folder / _RECORD)
    return last


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(path.name not in (PART, _RECORD, "base-4bit") for path in folder.iterdir())


def _remove_results(folder: Path) -> None:
    """What an earlier run wrote, and nothing else."""
    for pattern in ("checkpoint-*", PART, "base-4bit"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)
    for pattern in ("adapter_*", "*.safetensors*", "config.json", "report.html", _RECORD):
        for path in folder.glob(pattern):
            path.unlink()


def _check_same(folder: Path, record: dict[str, object]) -> None:
    if not (folder / _RECORD).is_file():
        return
    begun = read_json(folder / _RECORD)
    for key, value in record.items():
        if key not in _FREE and key in begun and begun[key] != value:
            raise InputError(
                f"output_dir {folder}: was begun with {key}={begun[key]!r}, the recipe says {value!r}: give another "
                "output_dir, or set overwrite_output_dir: true"
            )
