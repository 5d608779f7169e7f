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

from .data.dataset import source_digest
from .data.info import sources
from .recipe import Recipe
from .trainer import PART

_RECORD = "recipe.json"
_NEW = f"{_RECORD}.new"  # while it is written
_FINISHED = "finished"  # in it, the updates of a run whose result is written
QUANTISED = "base-4bit"  # of load_in_4bit
# What may change between a checkpoint and its resumption.
_FREE = ("output_dir", "overwrite_output_dir", "cache_dir")
# Of the Trainer's arguments, those that do not change what is computed; another device may round otherwise.
_FREE_TRAINING = (
    *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter"),
    *("log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen"),
    *("save_strategy", "save_steps", "save_total_limit", "save_on_each_node", "save_only_model"),
    *("enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
    *("hub_always_push", "hub_revision", "use_cpu", "skip_memory_metrics"),
    *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("ddp_backend", "ddp_timeout", "local_rank", "torch_empty_cache_steps"),
)


def finished_steps(recipe: Recipe) -> int | None:
    """The updates of a run of this recipe that has come to its end and is written; None: there is something to do.

    Raises:
        InputError: the folder is another recipe's.
    """
    folder = Path(recipe.output_dir)
    begun = _begun(folder)
    asked = _asked(recipe)
    anew = recipe.overwrite_output_dir or asked is False or (asked is not True and _is_in(asked, folder))
    if anew or _FINISHED not in begun or not (folder / "report.html").is_file():
        return None
    _check_same(folder, _record(recipe))
    steps: int = begun[_FINISHED]
    return steps


def set_finished(recipe: Recipe, steps: int) -> None:
    """Say so in the folder, which holds the result."""
    folder = Path(recipe.output_dir)
    _write_record(folder, {**read_json(folder / _RECORD), _FINISHED: steps})


def starting_point(recipe: Recipe, main: bool, processes: int = 1) -> str | None:
    """The checkpoint to go on from; the folder is made, and cleared where the recipe says so.

    Args:
        main: whether this process writes; the others wait for it.
        processes: of this run.

    Raises:
        InputError: the folder holds something else, or another recipe's checkpoints or result.
    """
    folder, asked = Path(recipe.output_dir), _asked(recipe)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir {folder} is a file: give a folder")
    record = {**_record(recipe), "processes": processes}
    own = isinstance(asked, Path) and _is_in(asked, folder)
    if recipe.overwrite_output_dir:
        _check_kept(recipe)
        if main:
            _remove_results(folder)
        last = None  # another process may look while this one still clears
    else:
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if last is not None and asked is False:
            raise InputError(
                f"resume_from_checkpoint: false: output_dir {folder} has checkpoints: give another, or set "
                "overwrite_output_dir: true"
            )
        _check_folder(folder, record, last is not None, own)
    start = _begin(recipe, last)
    if start is not None and not (Path(start) / "trainer_state.json").is_file():
        raise InputError(f"resume_from_checkpoint {start}: holds no trainer_state.json: give a checkpoint's folder")
    if main:
        shutil.rmtree(folder / PART, ignore_errors=True)  # of a killed run
        if last is None and not _begun_on(folder, record):
            shutil.rmtree(folder / QUANTISED, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        _write_record(folder, record)
    return start


def stopped(recipe: Recipe) -> str:
    """What to tell whoever stopped the run."""
    start = _begin(recipe, get_last_checkpoint(recipe.output_dir))
    if start is None:
        return "stopped before a checkpoint was saved, see save_steps: the same command begins at the first update"
    anew = "overwrite_output_dir" if recipe.overwrite_output_dir else "resume_from_checkpoint: false"
    without = f", without {anew}," if recipe.overwrite_output_dir or _asked(recipe) is False else ""
    return f"stopped: the same command{without} goes on from {start}"


def _begin(recipe: Recipe, last: str | None) -> str | None:
    """The named checkpoint if it is the run's own or there is no ``last`` one; else that."""
    asked = _asked(recipe)
    named = isinstance(asked, Path) and (last is None or _is_in(asked, Path(recipe.output_dir)))
    return str(asked) if named else last


def _asked(recipe: Recipe) -> Path | bool:
    """The checkpoint that the recipe names, or whether to go on from the last one."""
    asked = recipe.training.get("resume_from_checkpoint")
    if asked is None or str(asked).lower() in ("true", "false"):
        return str(asked).lower() != "false"
    return Path(asked)


def _check_kept(recipe: Recipe) -> None:
    """Raises InputError where overwriting would remove what the run begins with."""
    folder, needed = Path(recipe.output_dir).resolve(), dataclasses.asdict(recipe) | recipe.training
    for key in ("model_name_or_path", "adapter_models", "resume_from_checkpoint"):
        if isinstance(needed.get(key), str):
            path = Path(needed[key]).resolve()
            if folder in (path, path.parent):
                raise InputError(f"overwrite_output_dir removes {key} {needed[key]}: give another output_dir")


def _is_in(checkpoint: Path, folder: Path) -> bool:
    return checkpoint.resolve().parent == folder.resolve()


def _record(recipe: Recipe) -> dict[str, Any]:
    """What a run is known by, as JSON has it. A named checkpoint is a part of it unless it is the run's own."""
    record: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    asked = _asked(recipe)
    if isinstance(asked, bool) or _is_in(asked, Path(recipe.output_dir)):
        record["training"].pop("resume_from_checkpoint", None)
    record["rows"] = source_digest(sources(str(recipe.dataset), recipe.custom_dataset_info)).hexdigest()
    return record


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    beside = folder / _NEW
    with writing(folder, beside, "then run it again"):
        beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, folder / _RECORD)


def _begun(folder: Path) -> dict[str, Any]:
    """The record in a folder; empty if it has none."""
    return read_json(folder / _RECORD) if (folder / _RECORD).is_file() else {}


def _begun_on(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the folder was begun on the recipe's model."""
    begun = _begun(folder)
    return all(key in begun and begun[key] == record[key] for key in ("model_id", "model_name_or_path"))


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(path.name not in (PART, _RECORD, _NEW, QUANTISED) for path in folder.iterdir())


def _remove_results(folder: Path) -> None:
    """What an earlier run wrote, and nothing else."""
    for pattern in ("checkpoint-*", PART, QUANTISED):
        for path in folder.glob(pattern):
            shutil.rmtree(path)
    for pattern in ("adapter_*", "*.safetensors*", "config.json", "report.html", _RECORD):
        for path in folder.glob(pattern):
            path.unlink()


def _check_folder(folder: Path, record: dict[str, Any], has_checkpoint: bool, own: bool) -> None:
    """Raises InputError for what is not this recipe's; ``own``: a checkpoint in it is named, so it is taken."""
    if not has_checkpoint and not _holds_something(folder):
        return
    if (folder / _RECORD).is_file():
        _check_same(folder, record)
    elif not own:
        what = f"has checkpoints without {_RECORD}" if has_checkpoint else "is not empty and has no checkpoint"
        name = ", name one as resume_from_checkpoint" if has_checkpoint else ""
        raise InputError(f"output_dir {folder} {what}: give another{name}, or set overwrite_output_dir: true")


def _check_same(folder: Path, record: dict[str, Any]) -> None:
    begun = read_json(folder / _RECORD)
    fixed = {key: (begun[key], value) for key, value in record.items() if key in begun and key not in _FREE}
    old, new = fixed.pop("training", ({}, {}))
    unsaid = {field.name: _default(field) for field in dataclasses.fields(TrainingArguments)}
    for key in sorted((old.keys() | new.keys()) - {*_FREE_TRAINING}):
        fixed[key] = old.get(key, unsaid.get(key)), new.get(key, unsaid.get(key))
    for key, (before, now) in fixed.items():
        if before != now:
            raise InputError(
                f"output_dir {folder}: was begun with {_difference(key, before, now)}: give another output_dir, or set "
                "overwrite_output_dir: true"
            )


def _difference(key: str, before: Any, now: Any) -> str:
    if key == "rows":
        return "other rows in the files of its dataset"
    if key == "processes":
        return f"{before} process{'' if before == 1 else 'es'}, now there {'is' if now == 1 else 'are'} {now}"
    return f"{key}={before!r}, the recipe says {now!r}"


def _default(field: dataclasses.Field[Any]) -> Any:
    """As JSON has it."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return None if value is dataclasses.MISSING else value
