"""transformers' Trainer with whole checkpoints, the WSD schedule, and what the logs and the report need."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, sort_checkpoints

from ascend_m1.errors import InputError
from ascend_m1.writing import usual_modes, writing

from .schedule import wsd_lambda_lr
from .sharding import shard_on_cpus
from .training import refusals

PART = ".part"  # in the output folder, what is being written or removed
AGAIN = "then run it again: it goes on from the last checkpoint"


class M1Trainer(Trainer):  # type: ignore[misc, unused-ignore]
    """The Trainer; a checkpoint appears under its name when all of it is written.

    Args:
        wsd: ``num_decay_steps`` (a tenth of the run) and ``min_lr_ratio`` (0) of the WSD schedule; None: the schedule
            that the Trainer's arguments name.
    """

    def __init__(self, *args: Any, wsd: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.wsd = wsd
        self._folder = Path(self.args.output_dir)
        self._writing = False

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's, and FSDP on CPUs."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and self.args.device.type == "cpu":
            shard_on_cpus(self.accelerator, FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args))
            self.is_fsdp_enabled = True

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; of packed rows the mask was for the count of tokens alone."""
        packed = "position_ids" in inputs
        given = {key: value for key, value in inputs.items() if not (packed and key == "attention_mask")}
        return super().compute_loss(model, given, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """The Trainer's; InputError: it does not know the recipe's, or not its arguments."""
        with refusals():
            made: Optimizer = super().create_optimizer(*args, **kwargs)
        return made

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The schedule of this run."""
        if self.wsd is None:
            with refusals():
                made: LRScheduler = super().create_scheduler(num_training_steps, optimizer)
            return made
        warmup = self.args.get_warmup_steps(num_training_steps)
        decay = self.wsd.get("num_decay_steps", num_training_steps // 10)
        if warmup + decay > num_training_steps:
            raise InputError(
                f"warmup_steps {warmup} and num_decay_steps {decay} (lr_scheduler_kwargs) do not fit the run's "
                f"{num_training_steps} updates: shorten them, or give more max_steps or num_train_epochs"
            )
        min_ratio = self.wsd.get("min_lr_ratio", 0.0)
        schedule = wsd_lambda_lr(optimizer or self.optimizer, warmup, num_training_steps, decay, min_ratio)
        self.lr_scheduler, self._created_lr_scheduler = schedule, True
        return schedule

    def save_result(self) -> None:
        """The trained adapter or model into the output folder, each file whole, the configuration last."""
        if self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        part = self._folder / PART / "result"
        with writing(self._folder, self._folder / PART, AGAIN):
            self.save_model(str(part))
        if self.args.should_save:
            usual_modes(part)
            for path in sorted(part.iterdir(), key=lambda path: path.name.endswith("config.json")):
                os.replace(path, self._folder / path.name)
        self._end_writing()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Without PEFT's card, a form that nobody has filled in."""
        super()._save(output_dir, state_dict)
        Path(output_dir or self.args.output_dir, "README.md").unlink(missing_ok=True)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._folder / PART) if self._writing else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._writing = True
        try:
            with writing(self._folder, self._folder / PART, AGAIN):
                super()._save_checkpoint(model, trial)
        finally:
            self._writing = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            name = f"checkpoint-{self.state.global_step}"
            usual_modes(self._folder / PART / name)
            if (self._folder / name).exists():  # of a run that was taken up before it
                os.replace(self._folder / name, self._folder / PART / "old")
            os.replace(self._folder / PART / name, self._folder / name)
            self._remove_older()
        self._end_writing()

    def _remove_older(self) -> None:
        """All but the last ``save_total_limit``, each taken out of the folder at once."""
        limit = self.args.save_total_limit
        for path in sort_checkpoints(str(self._folder))[:-limit] if limit else []:
            os.replace(path, self._folder / PART / Path(path).name)

    def _end_writing(self) -> None:
        if self.args.should_save:
            shutil.rmtree(self._folder / PART, ignore_errors=True)
        self.accelerator.wait_for_everyone()


class Measures(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Adds ``tokens_per_second`` since the last log and ``memory_gb``, the most so far if it is known, to the logs.

    The last update is logged, too, so a run that is shorter than ``logging_steps`` has a loss.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin counting."""
        self._tokens, self._since = float(state.num_input_tokens_seen), time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for the last log."""
        if state.global_step == state.max_steps and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Into this log and into the history, which the Trainer has written already."""
        if logs is None or "loss" not in logs:
            return
        tokens, now = float(state.num_input_tokens_seen), time.monotonic()
        speed, memory = (tokens - self._tokens) / max(now - self._since, 1e-9), _peak_memory(args.device)
        measured = {
            "tokens_per_second": round(speed),
            **({} if memory is None else {"memory_gb": round(memory / 1e9, 3)}),
        }
        self._tokens, self._since = tokens, now
        logs.update(measured)
        state.log_history[-1].update(measured)


def _peak_memory(device: torch.device) -> int | None:
    """Bytes: allocated on the device, or of the process where there is none; None where the system does not tell."""
    if device.type == "cpu":
        if sys.platform == "win32":
            return None
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    module = getattr(torch, device.type)
    return int(module.max_memory_allocated())
