"""Where ``ascend-m1 train`` begins: at the last checkpoint of the same recipe, at one that is named, or anew."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ascend_m1_finetune.recipe import read_recipe
from ascend_m1_finetune.resume import starting_point

from .test_train import place, train

__all__ = ["place"]  # a fixture


@pytest.fixture
def begun(place: Path) -> Path:
    """Finished after four steps, with checkpoints of the second and the fourth."""
    assert train(max_steps=4, save_steps=2) == 0
    return place


def test_another_recipe_does_not_go_on_from_the_checkpoints(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(max_steps=4) == 0
    assert train(lora_rank=8) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ascend-m1: error: output_dir out: was begun with lora_rank=4, the recipe says 8: give")


def test_what_changes_the_schedule_or_the_updates_is_another_recipe(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("out/adapter_model.safetensors").read_bytes()
    for key, value, message in (
        ("learning_rate", 2e-2, "learning_rate=0.01, the recipe says 0.02"),
        ("max_steps", 8, "max_steps=4, the recipe says 8"),
        ("num_train_epochs", 2, "num_train_epochs=3.0, the recipe says 2.0"),
        ("per_device_train_batch_size", 2, "per_device_train_batch_size=4, the recipe says 2"),
        ("seed", 1, "seed=42, the recipe says 1"),
        ("optim", "sgd", "optim='adamw_torch_fused', the recipe says 'sgd'"),
        ("lr_scheduler_type", "cosine", "lr_scheduler_type='linear', the recipe says 'cosine'"),
        ("warmup_ratio", 0.1, "warmup_steps=0, the recipe says 0.1"),
        ("bf16", True, "bf16=False, the recipe says True"),
    ):
        assert train(**{"max_steps": 4, key: value}) == 2
        assert f"output_dir out: was begun with {message}: give another" in capsys.readouterr().err.splitlines()[-1]
    assert Path("out/adapter_model.safetensors").read_bytes() == before


def test_a_finished_run_is_not_repeated(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is loaded; without the report, which comes last, it is not finished."""
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    assert train(max_steps=4, save_steps=2) == 0
    ask = "ask it with `ascend-m1 generate --adapter out`"
    wanted = f"ascend-m1: out: finished already, 4 updates; {ask}, or begin anew with overwrite_output_dir=true\n"
    assert capsys.readouterr().err == wanted
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    Path("out/report.html").unlink()
    assert train(max_steps=4, save_steps=2) == 0
    captured = capsys.readouterr().err
    assert "out: written" in captured
    assert "Loading weights" not in captured
    assert "FutureWarning" not in captured
    assert Path("out/report.html").exists()


def test_what_does_not_change_the_updates_may_change(begun: Path) -> None:
    """Nor does a default that is written out."""
    whole = load_file("out/adapter_model.safetensors")
    for name in ("checkpoint-4", "report.html", "adapter_model.safetensors"):
        path = Path("out", name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    free = {"logging_steps": 1, "save_steps": 3, "save_total_limit": 1, "disable_tqdm": False, "use_cpu": True}
    assert train(max_steps=4, **free, seed=42, report_to="none") == 0
    resumed = load_file("out/adapter_model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_quantised_base_is_kept_for_its_own_model_only(place: Path) -> None:
    """As a run that was killed before its first checkpoint leaves it."""
    assert train(max_steps=1, load_in_4bit=True, save_strategy="no") == 0
    shutil.move("out/base-4bit", "base")
    for other in ({}, {"model_id": None, "model_name_or_path": "other"}):
        shutil.rmtree("out")
        recipe = read_recipe(Path("recipe.yaml"))
        assert starting_point(recipe, True) is None
        shutil.copytree("base", "out/base-4bit")
        assert starting_point(dataclasses.replace(recipe, **other), True) is None
        assert Path("out/base-4bit/config.json").exists() == (not other)
    Path("out/recipe.json").unlink()
    shutil.copytree("base", "out/base-4bit")
    assert starting_point(recipe, True) is None
    assert not Path("out/base-4bit").exists()


def test_a_process_that_looks_while_another_clears(begun: Path) -> None:
    recipe = read_recipe(Path("recipe.yaml"))
    assert starting_point(recipe, False) == "out/checkpoint-4"
    assert starting_point(dataclasses.replace(recipe, overwrite_output_dir=True), False) is None


def test_what_a_killed_run_was_writing_is_removed(begun: Path) -> None:
    Path("out/.part/old").mkdir(parents=True)
    assert starting_point(read_recipe(Path("recipe.yaml")), True) == "out/checkpoint-4"
    assert not Path("out/.part").exists()
