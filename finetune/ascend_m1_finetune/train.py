"""A recipe's model, data and method in transformers' Trainer, from the start or from a checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.cli.checkpoint import Checkpoint, open_checkpoint
from ascend_m1.cli.options import note, quiet
from ascend_m1.errors import CheckpointError
from ascend_m1.quantization.scheme import Scheme
from ascend_m1.quantization.write import quantise_checkpoint

from .adaptive import AdaptiveUpdate
from .data import Padded, stacked, training_data
from .lora import add_lora, load_adapter
from .qlora import quantised_base
from .recipe import Recipe
from .report import write_report
from .resume import QUANTISED, set_finished, starting_point, stopped
from .trainer import M1Trainer, Measures
from .training import refusals, training_arguments, wsd_words


def train(recipe: Recipe) -> M1Trainer:
    """Train, and write the adapter or the model into ``output_dir``.

    Raises:
        InputError, CheckpointError, ConfigError, TokenizerError: the recipe, a row of its data or a file of its model
            cannot be used.
    """
    arguments = training_arguments(recipe)
    if arguments.disable_tqdm:  # the Trainer's own; and those of the libraries round it
        datasets.disable_progress_bars()
        logging.disable_progress_bar()
    wsd = wsd_words(recipe, arguments)
    checkpoint = open_checkpoint(str(recipe.base))
    with arguments.main_process_first(local=False, desc="data and output folder"):  # of all nodes
        data = training_data(recipe, checkpoint.tokenizer, arguments.seed)
        start = starting_point(recipe, arguments.process_index == 0, arguments.world_size)
        base = _base(recipe, checkpoint)
    with refusals():
        set_seed(arguments.seed)
    with quiet():
        model = _adapted(_model(base, arguments, recipe), recipe)
    with refusals():
        trainer = M1Trainer(
            model=model,
            args=arguments,
            train_dataset=data,
            processing_class=checkpoint.tokenizer,
            data_collator=stacked if recipe.packing else Padded(checkpoint.tokenizer.pad_token_id or 0),
            callbacks=_callbacks(recipe),
            wsd=wsd,
        )
    if start is not None:
        note(f"going on from {start}")
    try:
        trainer.train(resume_from_checkpoint=start)
        trainer.save_result()
    except KeyboardInterrupt:
        if arguments.should_save:
            print(file=sys.stderr)  # ends the line of the progress bar and of the terminal's ^C
            note(stopped(recipe))
        raise
    if arguments.should_save:
        title = f"{recipe.base.name}, {recipe.finetuning_type}, {recipe.dataset}"
        path = Path(recipe.output_dir, "report.html")
        write_report(path, title, dataclasses.asdict(recipe), trainer.state.log_history)
        set_finished(recipe, trainer.state.global_step)
    # A process that ends while another still talks to it may be aborted by its own threads.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return trainer


def _base(recipe: Recipe, checkpoint: Checkpoint) -> Path:
    """The base's folder; with load_in_4bit that of its quantised copy, made beside the results on first use."""
    if not recipe.load_in_4bit or getattr(checkpoint.config, "quantization_config", None):
        return checkpoint.path
    folder = Path(recipe.output_dir) / QUANTISED
    if not (folder / "config.json").is_file():
        quantise_checkpoint(checkpoint.path, folder, Scheme(4, 128), lambda done, all: note(f"quantised {done}/{all}"))
    return folder


def _model(base: Path, arguments: TrainingArguments, recipe: Recipe) -> BaichuanM1ForCausalLM:
    """A frozen base in the dtype of the computation; weights that are trained in float32."""
    dtype = torch.float32
    if recipe.finetuning_type == "lora":
        dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32
    if open_checkpoint(str(base)).config.to_dict().get("quantization_config"):
        return quantised_base(base, dtype)
    model: BaichuanM1ForCausalLM = BaichuanM1ForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True)
    return model


def _adapted(model: BaichuanM1ForCausalLM, recipe: Recipe) -> BaichuanM1ForCausalLM | PeftModel:
    if recipe.finetuning_type == "full":
        return model
    model.name_or_path = str(recipe.base)  # the adapter's base, whatever was computed with
    if recipe.adapter_models is not None:
        if not Path(recipe.adapter_models, "adapter_config.json").is_file():
            raise CheckpointError(f"adapter_models {recipe.adapter_models}: give a folder with adapter_config.json")
        adapted = load_adapter(model, Path(recipe.adapter_models), trainable=True)
        adapted.peft_config["default"].base_model_name_or_path = str(recipe.base)
        return adapted
    return add_lora(
        model,
        recipe.lora_rank,
        recipe.lora_alpha or 2 * recipe.lora_rank,
        recipe.lora_dropout,
        recipe.lora_target_modules,
        recipe.train_convolution,
    )


def _callbacks(recipe: Recipe) -> list[TrainerCallback]:
    factor: Any = recipe.adaptive_update_factor
    return [*([] if factor is None else [AdaptiveUpdate(factor)]), Measures()]
