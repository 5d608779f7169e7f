"""Recipes: openMind's words and ours, and one line for whatever is wrong with them."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from ascend_m1.errors import InputError
from ascend_m1_finetune.recipe import KEYS, Recipe, read_recipe
from ascend_m1_finetune.training import training_arguments, wsd_words
from ascend_m1_finetune.words import CHECKPOINTING, RENAMED

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "finetune" / "recipes").glob("*.yaml"))
LEAST = {"model_id": "m1-icd10", "dataset": "x", "output_dir": "out"}


def read(folder: Path, text: str | dict[str, Any], *changes: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return read_recipe(path, changes)


# The recipe that the reference of openMind 1.0.0 ran with, word for word but for the model.
OPENMIND = """
model_name_or_path: ./tiny
stage: sft
do_train: true
finetuning_type: lora
lora_target_modules: q_proj, v_proj
lora_rank: 4
lora_alpha: 8
dataset: med
custom_dataset_info: info.json
cutoff_len: 128
output_dir: out
per_device_train_batch_size: 2
learning_rate: 1.0e-3
max_steps: 4
logging_steps: 1
report_to: none
"""


def test_a_recipe_of_openmind(tmp_path: Path) -> None:
    recipe = read(tmp_path, OPENMIND)
    assert (recipe.base, recipe.lora_rank, recipe.lora_target_modules) == (Path("tiny"), 4, "q_proj, v_proj")
    arguments = training_arguments(recipe)
    assert (arguments.max_steps, arguments.learning_rate, arguments.per_device_train_batch_size) == (4, 1e-3, 2)


def test_openminds_defaults(tmp_path: Path) -> None:
    recipe = read(tmp_path, LEAST)
    assert (recipe.stage, recipe.finetuning_type, recipe.cutoff_len, recipe.lora_rank) == ("sft", "full", 1024, 8)
    assert (recipe.lora_alpha, recipe.lora_dropout, recipe.use_gradient_checkpointing) == (None, 0.0, True)


def test_every_key_of_openmind_is_taken_with_its_default(tmp_path: Path) -> None:
    """Those that must be given, or are of LoRA alone, have a value."""
    defaults = yaml.safe_load((Path(__file__).parent / "openmind_keys.yaml").read_text())
    assert len(defaults) > 150
    others = {key: value for key, value in defaults.items() if key != "gradient_checkpointing"}  # of two words for it
    recipe = read(tmp_path, others | LEAST | {"finetuning_type": "lora", "do_train": True})
    arguments = training_arguments(recipe)
    assert (arguments.num_train_epochs, arguments.max_steps, arguments.learning_rate) == (3, -1, 5e-5)
    for key, value in defaults.items():
        read(tmp_path, LEAST | {"finetuning_type": "lora"} | ({key: value} if value not in (None, False) else {}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("label_smoothing_factor", 1e-4, "the loss is made in chunks, without smoothing: leave it out"),
        ("eval_strategy", "steps", "nothing is evaluated while training: leave it out, and ask the result"),
        ("evaluation_strategy", "steps", "nothing is evaluated while training"),
        ("eval_on_start", True, "nothing is evaluated while training"),
        ("new_special_tokens", "<x>", "the vocabulary stays as it is: leave it out"),
        ("group_by_length", True, "say train_sampling_strategy: group_by_length"),
        ("fsdp_min_num_params", 10, "say it in fsdp_config"),
        ("save_safetensors", False, "weights are written as safetensors: leave it out"),
    ],
)
def test_what_has_one_possible_value(key: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, LEAST | {key: value})
    assert str(caught.value).startswith(f"{tmp_path / 'recipe.yaml'}: {key}: {value!r}: {message}")


def test_the_other_names_are_the_trainers(tmp_path: Path) -> None:
    """What the messages say to write instead is taken, too."""
    assert set(RENAMED.values()) <= {f.name for f in dataclasses.fields(TrainingArguments)}
    instead = {"optim": "adafactor", "train_sampling_strategy": "group_by_length", "torch_compile_backend": "eager"}
    words = instead | {"accelerator_config": {"split_batches": True, "dispatch_batches": False}}
    arguments = training_arguments(read(tmp_path, LEAST | words))
    assert all(getattr(arguments, key) == value for key, value in instead.items())
    assert arguments.accelerator_config.split_batches
    assert read(tmp_path, LEAST | {"per_gpu_train_batch_size": 3}).training == {"per_device_train_batch_size": 3}


@pytest.mark.parametrize("words", list(itertools.permutations([("warmup_steps", 10), ("warmup_ratio", 0.1)])))
def test_two_words_for_the_same(words: tuple[tuple[str, Any], ...], tmp_path: Path) -> None:
    """As in older transformers 0 leaves it to the other; a word of the command line wins over both."""
    with pytest.raises(InputError, match="two words for the same: leave one of them out"):
        read(tmp_path, "".join(f"{key}: {value}\n" for key, value in [*LEAST.items(), *words]))
    for key, value in words:
        mine = "".join(f"{name}: {value if name == key else 0}\n" for name, _ in words)
        text = "".join(f"{name}: {value}\n" for name, value in LEAST.items()) + mine
        assert read(tmp_path, text).training == {"warmup_steps": value}
        assert read(tmp_path, text, "warmup_ratio=0.3").training == {"warmup_steps": 0.3}


def test_words_without_effect_and_older_names_are_taken(tmp_path: Path) -> None:
    others = {"trust_remote_code": True, "preprocessing_num_workers": 4, "evaluation_strategy": "no", "bf16": True}
    recipe = read(tmp_path, LEAST | others | {"warmup_ratio": 0.1, "logging_dir": "logs", "save_safetensors": True})
    assert recipe.training == {"eval_strategy": "no", "warmup_steps": 0.1, "bf16": True}
    assert training_arguments(recipe).get_warmup_steps(50) == 5


def test_changes_win_and_numbers_may_be_written_as_yaml_does_not_know_them(tmp_path: Path) -> None:
    recipe = read(tmp_path, LEAST | {"learning_rate": "1e-3"}, "learning_rate=2e-4", "packing=true", "seed=3")
    assert (recipe.training["learning_rate"], recipe.packing, recipe.training["seed"]) == (2e-4, True, 3)


def test_no_is_a_strategy_although_yaml_reads_it_as_false(tmp_path: Path) -> None:
    recipe = read(tmp_path, "model_id: m1-icd10\ndataset: x\noutput_dir: out\nsave_strategy: no", "eval_strategy=no")
    assert (recipe.training["save_strategy"], recipe.training["eval_strategy"]) == ("no", "no")
    assert training_arguments(recipe).save_strategy == "no"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_rang": 4}, "unknown key 'lora_rang': did you mean 'lora_rank'?"),
        ({"learning_rates": 1}, "unknown key 'learning_rates': did you mean 'learning_rate'?"),
        ({"zzz": 1}, "unknown key 'zzz': see docs/finetune.md"),
        ({"model_name_or_path": "x"}, "give one of model_id and model_name_or_path"),
        ({"model_id": None}, "give one of model_id and model_name_or_path"),
        ({"model_id": "m1"}, "model_id 'm1': known is m1-icd10"),
        ({"dataset": None}, "dataset is missing: add it"),
        ({"output_dir": ""}, "output_dir is missing: add it"),
        ({"do_train": False}, "do_train: false: there is nothing to do"),
        ({"stage": "dpo"}, "stage: 'dpo': give sft"),
        ({"finetuning_type": "galore"}, "finetuning_type: 'galore': give full or lora"),
        ({"lora_rank": 4}, "lora_rank with finetuning_type: full"),
        ({"load_in_4bit": True}, "load_in_4bit with finetuning_type: full"),
        ({"train_convolution": True}, "train_convolution with finetuning_type: full"),
        ({"finetuning_type": "lora", "fsdp": True}, "fsdp with finetuning_type: lora"),
        ({"cutoff_len": "long"}, "cutoff_len: 'long': give a whole number"),
        ({"cutoff_len": 1}, "cutoff_len: 1: give 2 or more"),
        ({"packing": "maybe"}, "packing: 'maybe': give true or false"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast': give a number"),
        ({"max_steps": 1.5}, "max_steps: 1.5: give a whole number"),
        ({"streaming": True}, "streaming without max_steps"),
        ({"streaming": True, "packing": True, "max_steps": 3}, "streaming with packing"),
        ({"bf16": True, "fp16": True}, "bf16 and fp16: give one of them"),
        ({"cutoff_len": math.inf}, "cutoff_len: inf: give a whole number"),
        ({"cutoff_len": math.nan}, "cutoff_len: nan: give a whole number"),
        ({"cutoff_len": True}, "cutoff_len: True: give a whole number"),
        ({"cutoff_len": [1]}, "cutoff_len: [1]: give a whole number"),
        ({"lora_rank": {"a": 1}}, "lora_rank: {'a': 1}: give a whole number"),
        ({"learning_rate": math.inf}, "learning_rate: inf: give a number"),
        ({"learning_rate": datetime.date(2024, 1, 1)}, "learning_rate: datetime.date(2024, 1, 1): give a number"),
        ({"output_dir": True}, "output_dir: True: give text"),
        ({"dataset": ["a"]}, "dataset: ['a']: give text"),
        ({"report_to": False}, "report_to: False: give text or a list"),
        ({"include_for_metrics": "x"}, "include_for_metrics: 'x': give a list"),
        ({"parallelism_config": {"tp": 2}}, "parallelism_config: {'tp': 2}: give nothing"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: 0: give 1 or more"),
        ({"lora_alpha": 0, "finetuning_type": "lora"}, "lora_alpha: 0: give 1 or more"),
        ({"warmup_ratio": 1}, "warmup_ratio: 1: give less than 1, or warmup_steps"),
        ({"finetuning_type": "lora", "adapter_models": "x", "lora_rank": 4}, "lora_rank with adapter_models"),
        ({"finetuning_type": "lora", "adapter_models": "x", "lora_target_modules": "mlp"}, "lora_target_modules with"),
        (
            {"use_gradient_checkpointing": True, "gradient_checkpointing": False},
            f"use_gradient_checkpointing with {CHECKPOINTING}: they contradict",
        ),
        ({"adaptive_update_factor": 4, "max_grad_norm": 1.0}, "adaptive_update_factor with max_grad_norm"),
    ],
)
def test_mistakes(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, {key: value for key, value in (LEAST | change).items() if value is not None})
    assert str(caught.value).startswith(f"{tmp_path / 'recipe.yaml'}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "holds no keys"),
        ("", "holds no keys"),
        ("a: [1", "line 1: not YAML"),
        ("[a]: 1", "line 1: not YAML"),
        ("dataset: a\ndataset: b", "line 2: not YAML (dataset stands twice)"),
        ("dataset: a\nfsdp_config: {version:2}", "line 2: not YAML (version:2 needs a space after :)"),
    ],
)
def test_files_that_are_no_recipes(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml") as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist: give a YAML file"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "word", ["fsdp_config={version: 2", "fsdp_config={version:2}", "output_dir=@x", "fsdp_config={a: 1, a: 2}"]
)
def test_a_change_that_is_not_yaml(word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^" + re.escape(f"{word}: not YAML (")):
        read(tmp_path, LEAST, word)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"save_strategy": "sometimes"}, r"the Trainer refuses the recipe: .*sometimes"),
        ({"report_to": "tensorbord"}, "report_to: 'tensorbord': unknown or not installed: install it, or say none"),
    ],
)
def test_what_the_trainer_refuses_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        training_arguments(read(tmp_path, LEAST | change))


def test_deepspeed_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ascend_m1_finetune.training.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^deepspeed not installed: pip install deepspeed, or leave deepspeed out$"):
        training_arguments(read(tmp_path, LEAST | {"deepspeed": "zero3.json"}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_decay_step": 5}, "lr_scheduler_kwargs has 'num_decay_step': did you mean 'num_decay_steps'?"),
        ({"a": 5}, "lr_scheduler_kwargs has 'a': wsd knows num_decay_steps and min_lr_ratio"),
        ({"num_decay_steps": "ten"}, "lr_scheduler_kwargs: num_decay_steps: 'ten': give a whole number"),
        ({"num_decay_steps": [5]}, "lr_scheduler_kwargs: num_decay_steps: [5]: give a whole number"),
    ],
)
def test_mistakes_in_the_words_of_wsd(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    recipe = read(tmp_path, LEAST | {"lr_scheduler_type": "wsd", "lr_scheduler_kwargs": given})
    with pytest.raises(InputError) as caught:
        wsd_words(recipe, training_arguments(recipe))
    assert str(caught.value) == message


@pytest.mark.parametrize("key", ["use_gradient_checkpointing", "gradient_checkpointing", "activation_checkpointing"])
@pytest.mark.parametrize("value", [True, False])
def test_each_word_for_checkpointing_is_what_it_says(key: str, value: bool, tmp_path: Path) -> None:
    if key in KEYS:  # the newest versions of transformers have the third
        assert getattr(training_arguments(read(tmp_path, LEAST | {key: value})), CHECKPOINTING) is value


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is valid and says in its header how it is run."""
    monkeypatch.chdir(ROOT)
    read_recipe(path)
    header = path.read_text().split("\n\n")[0]
    assert f"train finetune/recipes/{path.name}" in header


def test_every_key_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "finetune.md").read_text()
    ours = [key for key in KEYS if key in Recipe.__dataclass_fields__]
    assert [key for key in ours if f"`{key}`" not in text] == []
