"""A recipe: one flat YAML file in openMind's words, checked before anything is loaded.

The keys are openMind's (its model, data and finetune arguments, and every field of the Trainer's arguments) and a few
of ours. ``training.py`` makes the Trainer's arguments of the latter.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import TrainingArguments

from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import InputError

from .words import CHECKPOINTING, ONLY, RENAMED, WITHOUT_EFFECT

MODEL_IDS = {"m1-icd10": EMBEDDED}
# Text, says the Trainer, that may be true or false as well.
_ALSO_BOOL = ("fsdp", "resume_from_checkpoint")
_LEAST = {
    **{"cutoff_len": 2, "lora_rank": 1, "lora_alpha": 1, "lora_dropout": 0, "dataloader_num_workers": 0},
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), 1),
}
_LORA = ("lora_target_modules", "lora_alpha", "lora_dropout", "lora_rank", "train_convolution")


@dataclass(frozen=True)
class Recipe:
    """The checked recipe; defaults are openMind's, or mean "off" for the keys below ``training``.

    Attributes:
        model_id: a known checkpoint's name; or else ``model_name_or_path``, a checkpoint's folder.
        load_in_4bit: quantise the base to 4 bits first; a quantised checkpoint needs no such word.
        adapter_models: an adapter's folder to go on with.
        dataset: names, with commas, of entries in the files ``custom_dataset_info``.
        cutoff_len: tokens of a row at most, or of a packed row.
        lora_alpha: twice the rank, unless given.
        overwrite_output_dir: begin anew where a folder has checkpoints already, instead of going on.
        training: the Trainer's own arguments, as written.
        packing: several documents in a row, with borders that nothing crosses.
        streaming: tokenise while training, without a cache.
        train_convolution: train the convolution's filters beside the adapter.
        adaptive_update_factor: leave out an update whose gradient norm is above this many times the running mean.
    """

    output_dir: str = ""
    model_id: str | None = None
    model_name_or_path: str | None = None
    load_in_4bit: bool = False
    use_gradient_checkpointing: bool = True
    adapter_models: str | None = None
    cache_dir: str | None = None
    dataset: str | None = None
    custom_dataset_info: str | None = None
    cutoff_len: int = 1024
    stage: str = "sft"
    finetuning_type: str = "full"
    lora_target_modules: str = "all"
    lora_alpha: int | None = None
    lora_dropout: float = 0.0
    lora_rank: int = 8
    do_train: bool = True
    overwrite_output_dir: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    packing: bool = False
    streaming: bool = False
    train_convolution: bool = False
    adaptive_update_factor: float | None = None

    @property
    def base(self) -> Path:
        """The checkpoint's folder."""
        return MODEL_IDS[self.model_id] if self.model_id else Path(str(self.model_name_or_path))


_OWN = {name: kind for name, kind in get_type_hints(Recipe).items() if name != "training"}
_TRAINER = {name: kind for name, kind in get_type_hints(TrainingArguments).items() if not name.startswith("_")}
_TRAINER = {f.name: _TRAINER[f.name] for f in dataclasses.fields(TrainingArguments)}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "keys"}
KEYS = (*_OWN, *_TRAINER, *WITHOUT_EFFECT, *RENAMED, *ONLY)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from its file and ``KEY=VALUE`` words, which win.

    Raises:
        InputError: one line with the file, the key and what to do.
    """
    values = _read_yaml(path)
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"{word!r}: give changes of the recipe as KEY=VALUE")
        for other in [other for other in values if RENAMED.get(other, other) == RENAMED.get(key, key)]:
            del values[other]
        values[key] = _read_value(key, text)
    try:
        recipe = _recipe(values)
        _check(recipe, values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return recipe


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise InputError(f"recipe {path} does not exist: give a YAML file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not valid UTF-8: convert the file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not YAML ({getattr(error, 'problem', error)}): mend the line") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no keys: write lines like `dataset: my_data`")
    return {str(key): value for key, value in content.items()}


def _read_value(key: str, text: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise InputError(f"{key}={text}: not YAML ({getattr(error, 'problem', error)}): mend it") from None


class _UniqueKeys(yaml.SafeLoader):
    """YAML forbids a key twice; PyYAML takes the last one. And {a:1} is to YAML one key, a:1, without a value."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []  # a list could not be in a set
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands twice", key_node.start_mark)
            if ":" in str(key) and value_node.value == "":
                raise yaml.constructor.ConstructorError(None, None, f"{key} needs a space after :", key_node.start_mark)
            seen.append(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _recipe(values: dict[str, Any]) -> Recipe:
    own: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for name, (key, value) in _by_name(values).items():
        if name in WITHOUT_EFFECT:
            continue
        if name in _OWN:
            own[name] = typed(key, value, _OWN[name])
        elif name in _TRAINER:
            training[name] = typed(key, value, _TRAINER[name])
        elif name not in ONLY:
            near = difflib.get_close_matches(key, KEYS, 1)
            raise InputError(f"unknown key {key!r}: {f'did you mean {near[0]!r}?' if near else 'see docs/finetune.md'}")
        if name in ONLY:
            possible, instead = ONLY[name]
            if training.get(name, value) not in (None, *possible):
                raise InputError(f"{key}: {value!r}: {instead}")
    return Recipe(**{name: value for name, value in own.items() if value is not None}, training=training)


def _by_name(values: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """The keys' names here -> what the recipe calls it, and its value; 0 and null leave it to a second word."""
    found: dict[str, tuple[str, Any]] = {}
    for key, value in values.items():
        name = RENAMED.get(key, key)
        before_key, before = found.get(name, (key, None))
        if value is None and key in RENAMED:
            continue
        if _silent(before):
            found[name] = key, value
        elif not _silent(value) and value != before:
            raise InputError(f"{before_key} and {key}: two words for the same: leave one of them out")
    return found


def _silent(value: Any) -> bool:
    return value is None or (value == 0 and not isinstance(value, bool))


def typed(key: str, value: Any, kind: Any) -> Any:
    """The value as the key's type; YAML reads 1e-3 as a text, and a file may say "true".

    Raises:
        InputError: it has another type, or is not finite.
    """
    kinds = {get_origin(k) or k for k in (get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,))}
    if value is None or (isinstance(value, (dict, list)) and type(value) in kinds):
        return value
    if value is False and key.endswith("_strategy"):
        return "no"  # which YAML reads as false
    if isinstance(value, bool) and key in _ALSO_BOOL:
        return value
    if bool in kinds and (isinstance(value, bool) or str(value).lower() in ("true", "false")):
        return value if isinstance(value, bool) else value.lower() == "true"
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        if kinds & {int, float}:
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
            if math.isfinite(number) and (float in kinds or number == int(number)):
                return int(number) if int in kinds and number == int(number) else number
        if str in kinds:
            return str(value)
    wanted = " or ".join(word for known, word in _WORDS.items() if known in kinds)
    raise InputError(f"{key}: {value!r}: give {wanted or 'nothing'}")


def _check(recipe: Recipe, values: dict[str, Any]) -> None:
    """Raises InputError for what is missing, out of range or contradicts."""
    if (recipe.model_id is None) == (recipe.model_name_or_path is None):
        raise InputError("give one of model_id and model_name_or_path")
    if recipe.model_id is not None and recipe.model_id not in MODEL_IDS:
        raise InputError(
            f"model_id {recipe.model_id!r}: known is {', '.join(MODEL_IDS)}: give another checkpoint's folder as "
            "model_name_or_path"
        )
    for key in ("output_dir", "dataset"):
        if not getattr(recipe, key):
            raise InputError(f"{key} is missing: add it")
    if not recipe.do_train:
        raise InputError("do_train: false: there is nothing to do: leave it out")
    given = {**vars(recipe), **recipe.training}
    for key, least in _LEAST.items():
        if given.get(key) is not None and given[key] < least:
            raise InputError(f"{key}: {given[key]}: give {least} or more")
    if values.get("warmup_ratio") and recipe.training["warmup_steps"] >= 1:  # a number of steps, to the Trainer
        raise InputError(f"warmup_ratio: {values['warmup_ratio']}: give less than 1, or warmup_steps")
    differ = recipe.training.get(CHECKPOINTING) == (not recipe.use_gradient_checkpointing)
    if values.get("use_gradient_checkpointing") is not None and differ:
        raise InputError(f"use_gradient_checkpointing with {CHECKPOINTING}: they contradict: leave one of them out")
    _one_of("stage", recipe.stage, ("sft",))
    _one_of("finetuning_type", recipe.finetuning_type, ("full", "lora"))
    if recipe.finetuning_type == "full":
        for key in (*_LORA, "load_in_4bit", "adapter_models"):
            if values.get(key) not in (None, False):
                raise InputError(f"{key} with finetuning_type: full: leave it out, or say finetuning_type: lora")
    elif recipe.training.get("fsdp"):  # under PEFT it finds the last norm by "Norm" in the name: NormHead
        raise InputError("fsdp with finetuning_type: lora: accelerate would shard the head twice: leave fsdp out")
    for key in _LORA:
        if recipe.adapter_models is not None and values.get(key) not in (None, False):
            raise InputError(f"{key} with adapter_models: the adapter has its own: leave it out")
    if recipe.streaming and recipe.packing:
        raise InputError("streaming with packing: rows are packed from all documents: leave one of them out")
    if recipe.streaming and recipe.training.get("max_steps", -1) < 1:
        raise InputError("streaming without max_steps: the length of a stream is not known: add max_steps")
    if recipe.training.get("bf16") and recipe.training.get("fp16"):
        raise InputError("bf16 and fp16: give one of them")
    if recipe.adaptive_update_factor is not None and recipe.training.get("max_grad_norm"):
        raise InputError("adaptive_update_factor with max_grad_norm: one skips where the other clips: leave one out")


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{key}: {value!r}: give {' or '.join(known)}")
