"""``ascend-m1 train``: from one file to an adapter that answers; killed and resumed; the folder never half written."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.cli import main
from ascend_m1.cli.checkpoint import open_checkpoint
from ascend_m1.cli.options import EMBEDDED
from ascend_m1_finetune.data import training_data
from ascend_m1_finetune.recipe import Recipe, read_recipe

from .. import forks

QUESTION, ANSWER = "Which animal is grey?", "The elephant"
BASE = {
    "model_id": "m1-icd10",
    "finetuning_type": "lora",
    "lora_rank": 4,
    "dataset": "facts",
    "custom_dataset_info": "info.json",
    "cache_dir": "cache",
    "output_dir": "out",
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "max_steps": 12,
    "logging_steps": 4,
    "save_steps": 4,
    "use_gradient_checkpointing": False,
    "disable_tqdm": True,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a data set of eight rows, where the command is run."""
    write_rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(folder: Path) -> None:
    rows = [{"instruction": QUESTION, "output": ANSWER}] * 4
    rows += [{"instruction": f"What is {word}?", "output": word} for word in ("J45", "asthma", "an elephant", "grey")]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "info.json").write_text(json.dumps({"facts": {"local_path": ".", "file_name": "rows.json"}}))


def train(**changes: Any) -> int:
    recipe = BASE | changes
    Path("recipe.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()))
    return main(["train", "recipe.yaml"])


def state(folder: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "trainer_state.json").read_text())
    return found


def losses(folder: str | Path) -> list[float]:
    return [entry["loss"] for entry in state(folder)["log_history"] if "loss" in entry]


def test_one_file_makes_an_adapter_that_answers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(max_steps=30, save_strategy="no") == 0
    captured = capsys.readouterr()
    assert "out: written; ask it with `ascend-m1 generate --adapter out`" in captured.err
    assert main(["generate", "--adapter", "out", QUESTION]) == 0
    assert capsys.readouterr().out == f"{ANSWER}\n"
    assert main(["generate", QUESTION]) == 0
    assert capsys.readouterr().out != f"{ANSWER}\n"
    base = BaichuanM1ForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, "out")  # PEFT itself takes every tensor of it
    assert sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n) > 0
    report = Path("out/report.html").read_text()
    for word in ("data:image/png;base64,", "tokens/s", "lora_rank", "first and last logged"):
        assert word in report
    assert sorted(path.name for path in Path("out").iterdir() if path.name.startswith(".")) == []


def test_full_training_writes_a_checkpoint_in_the_published_format(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"finetuning_type": "full", "learning_rate": 1e-3, "max_steps": 30, "save_strategy": "no"}
    recipe = {key: value for key, value in (BASE | changes).items() if key != "lora_rank"}
    Path("recipe.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()))
    assert main(["train", "recipe.yaml"]) == 0
    capsys.readouterr()
    assert main(["generate", "--model", "out", QUESTION]) == 0
    assert capsys.readouterr().out == f"{ANSWER}\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_scheduler_type": "wsd", "lr_scheduler_kwargs": {"num_decay_steps": 4}, "warmup_steps": 2},
        {"packing": True, "cutoff_len": 64, "adaptive_update_factor": 4.0},
        {"lora_dropout": 0.2, "streaming": True, "train_convolution": True, "lora_target_modules": "q_proj,v_proj"},
        {"load_in_4bit": True, "bf16": True, "gradient_accumulation_steps": 2},
    ],
    ids=["wsd", "packed", "streamed", "4bit"],
)
def test_a_resumed_run_has_the_weights_of_one_that_was_not_stopped(changes: dict[str, Any], place: Path) -> None:
    """To the bit, on a CPU: data order, dropout, schedule, optimiser and what the adaptive update remembers."""
    assert train(output_dir="whole", **changes) == 0
    assert train(max_steps=12, save_total_limit=1, **changes) == 0
    assert [path.name for path in Path("out").glob("checkpoint-*")] == ["checkpoint-12"]
    assert train(output_dir="resumed", resume_from_checkpoint="whole/checkpoint-4", **changes) == 0
    whole, resumed = (load_file(Path(name, "adapter_model.safetensors")) for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert losses("resumed/checkpoint-12") == losses("whole/checkpoint-12")


def test_tokens_are_counted_without_padding(place: Path) -> None:
    """The same, however the rows are laid out; neither the tail of a packed row nor padding counts."""
    counts = []
    for changes in ({"packing": True, "cutoff_len": 40}, {}):
        assert train(max_steps=-1, num_train_epochs=1, save_strategy="epoch", overwrite_output_dir=True, **changes) == 0
        (last,) = Path("out").glob("checkpoint-*")
        counts.append(state(last)["num_input_tokens_seen"])
    data = training_data(read_recipe(Path("recipe.yaml")), open_checkpoint(str(EMBEDDED)).tokenizer, 42)
    assert counts == [sum(len(item["input_ids"]) for item in data)] * 2


def test_an_adapter_is_trained_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that the first run trained, and nothing else; what is not there or does not fit is one line."""
    few = {"max_steps": 2, "save_strategy": "no"}
    assert train(output_dir="a", train_convolution=True, lora_target_modules="q_proj,v_proj", **few) == 0
    assert train(output_dir="b", adapter_models="a", lora_rank=None, **few) == 0
    first, second = (load_file(Path(name, "adapter_model.safetensors")) for name in "ab")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert not torch.equal(tensor, second[name]), name
        assert torch.equal(tensor == 0, second[name] == 0) or "lora_B" not in name, name
    assert sum("conv_" in name for name in first) == 8
    path, name = Path("a/adapter_model.safetensors").absolute(), next(name for name in first if "lora_A" in name)
    save_file({key: tensor for key, tensor in first.items() if "lora_A" not in key}, path)
    assert train(output_dir="c", adapter_models="a", lora_rank=None, **few) == 2
    assert f"error: a/{path.name}: tensor {name} is missing: copy the adapter again" in capsys.readouterr().err
    save_file({**first, name: first[name][:, :9].contiguous()}, path)
    assert train(output_dir="c", adapter_models="a", lora_rank=None, **few) == 2
    assert "error: adapter a does not fit its base (size mismatch for" in capsys.readouterr().err


RESUMING = ["train", "recipe.yaml", "output_dir=out"]


def written() -> set[str]:
    """Everything below out; what vanishes meanwhile is passed over."""
    return {os.path.join(folder, name) for folder, _, names in os.walk("out") for name in names}


def test_killed_at_random_points_and_resumed(place: Path) -> None:
    """SIGKILL up to half a second after the run has begun to write; what has a checkpoint's name is whole."""
    kills = int(os.environ.get("ASCEND_M1_TEST_KILLS", "2"))
    assert train(output_dir="whole", max_steps=12 * kills, save_steps=1, save_total_limit=2) == 0
    chance = random.Random(0)
    for _ in range(kills):
        before = written()
        process = forks.start(place / "output", main, RESUMING)
        while process.is_alive() and written() <= before | {"out/recipe.json", "out/recipe.json.new"}:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.5)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, Path("output").read_text()  # it had not ended by itself
        for checkpoint in Path("out").glob("checkpoint-*"):
            assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {
                path.name for path in checkpoint.iterdir()
            }
            assert state(checkpoint)["global_step"] == int(checkpoint.name.rpartition("-")[2])
            load_file(checkpoint / "adapter_model.safetensors")
            torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert main(RESUMING) == 0
    whole, resumed = (load_file(Path(name, "adapter_model.safetensors")) for name in ("whole", "out"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not Path("out/.part").exists()


def train_on_a_full_disk(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    sys.exit(main(["train", "recipe.yaml"]))


@pytest.mark.parametrize(
    ("size", "save_strategy", "reason"), [(400, "steps", "only a part of a file"), (60, "no", "File too large")]
)
def test_a_disk_that_is_full(size: int, save_strategy: str, reason: str, place: Path) -> None:
    """Files of some KiB at most: too few for the optimiser's, or for the adapter's. Nothing half-written stays."""
    recipe = BASE | {"max_steps": 4, "save_strategy": save_strategy}
    Path("recipe.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()))
    run = forks.start(place / "output", train_on_a_full_disk, size * 1024)
    run.join()
    printed = Path("output").read_text()
    assert run.exitcode == 2, printed
    assert "Traceback" not in printed
    last = printed.splitlines()[-1]
    assert last.startswith("ascend-m1: error: out: cannot be written (")
    assert reason in last
    assert last.endswith("): free some space, then run it again: it goes on from the last checkpoint")
    assert [path.name for path in Path("out").iterdir()] == ["recipe.json"]
    assert main(["train", "recipe.yaml"]) == 0


def test_files_have_the_modes_that_the_umask_gives(place: Path) -> None:
    before = os.umask(0o027)
    try:
        assert train(max_steps=1, save_steps=1) == 0
    finally:
        os.umask(before)
    files = [path for path in Path("out").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}
    assert "README.md" not in {path.name for path in files}  # PEFT's empty form


def test_a_folder_that_holds_something_else(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    assert train() == 2
    wanted = "output_dir out is not empty and has no checkpoint: give another, or set overwrite_output_dir: true"
    assert capsys.readouterr().err.splitlines()[-1] == f"ascend-m1: error: {wanted}"
    assert train(overwrite_output_dir=True, max_steps=1, save_strategy="no") == 0
    assert Path("out/notes.txt").exists()
    assert train(overwrite_output_dir=True, max_steps=2, save_strategy="no", lora_rank=2) == 0


def test_only_the_recipe_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    wanted = "the following arguments are required: RECIPE: see `ascend-m1 train --help`"
    assert capsys.readouterr().err == f"ascend-m1: error: {wanted}\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": "none", "model_id": None}, "model none does not exist"),
        ({"lora_target_modules": "q_prj"}, "LoRA target 'q_prj': did you mean q_proj?"),
        ({"custom_dataset_info": "none.json"}, "custom_dataset_info none.json: No such file or directory"),
        ({"adapter_models": "none", "lora_rank": None}, "adapter_models none: give a folder with adapter_config.json"),
        ({"optim": "adamw_bnb_8bit"}, "the Trainer refuses the recipe: "),
        ({"lr_scheduler_kwargs": {"nope": 5}}, "the Trainer refuses the recipe: "),
        ({"lr_scheduler_type": "wsd", "warmup_steps": 999}, "warmup_steps 999 and num_decay_steps "),
        ({"seed": 2**40}, "the Trainer refuses the recipe: Seed must be between 0 and 2**32 - 1"),
        ({"resume_from_checkpoint": "none"}, "resume_from_checkpoint none: holds no trainer_state.json"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    changes: dict[str, Any], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(**changes) == 2
    assert [line.startswith(f"ascend-m1: error: {message}") for line in capsys.readouterr().err.splitlines()] == [True]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("NPU out of memory. Tried to allocate")])
def test_too_little_memory_names_what_the_recipe_can_change(
    error: BaseException, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(recipe: Any) -> None:
        raise error

    monkeypatch.setattr("ascend_m1_finetune.train.train", fail)
    assert train() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ascend-m1: error: out of memory: lower per_device_train_batch_size or cutoff_len, leave")
    for key in ("per_device_train_batch_size", "cutoff_len", "use_gradient_checkpointing", "load_in_4bit"):
        assert key in Recipe.__dataclass_fields__ or key in TrainingArguments.__dataclass_fields__
