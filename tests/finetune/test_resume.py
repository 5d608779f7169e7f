"""Where ``ascend-m1 train`` begins: at the last checkpoint of the same recipe, at one that is named, or anew."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ascend_m1.errors import InputError
from ascend_m1_finetune.recipe import read_recipe
from ascend_m1_finetune.resume import finished_steps, starting_point
from ascend_m1_finetune.trainer import Measures

from .test_train import place, train, write_rows

__all__ = ["place"]  # a fixture


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished after four steps, with checkpoints of the second and the fourth."""
    folder = tmp_path_factory.mktemp("trained")
    write_rows(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train(max_steps=4, save_steps=2) == 0
    return folder


@pytest.fixture
def begun(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where the command is run."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_another_recipe_does_not_go_on_from_the_checkpoints(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        ("adapter_models", "other", "adapter_models=None, the recipe says 'other'"),
    ):
        own = {"lora_rank": None} if key == "adapter_models" else {}  # which has its rank
        assert train(**{"max_steps": 4, key: value}, **own) == 2
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


def test_ctrl_c_says_where_the_same_command_begins(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pressed at each log, which stands just before a checkpoint: the run comes one checkpoint further each time."""
    monkeypatch.setattr(Measures, "on_log", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    steps = {"max_steps": 6, "logging_steps": 2, "save_steps": 2}
    says = "the same command begins at the first update"
    for changes, wanted in (
        ({}, f"stopped before a checkpoint was saved, see save_steps: {says}"),
        ({"logging_steps": 3}, "stopped: the same command goes on from out/checkpoint-2"),
        ({"overwrite_output_dir": True, "logging_steps": 5},
         "stopped: the same command, without overwrite_output_dir, goes on from out/checkpoint-4"),
        ({"logging_steps": 9, "resume_from_checkpoint": "out/checkpoint-2"},
         "stopped: the same command goes on from out/checkpoint-2"),
    ):  # fmt: skip
        assert train(**steps | changes) == 130
        assert capsys.readouterr().err.splitlines()[-1] == f"ascend-m1: {wanted}"


def test_what_a_killed_run_was_writing_is_removed(begun: Path) -> None:
    Path("out/.part/old").mkdir(parents=True)
    assert starting_point(read_recipe(Path("recipe.yaml")), True) == "out/checkpoint-4"
    assert not Path("out/.part").exists()


def refusal(capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """Why a run does not begin."""
    capsys.readouterr()
    assert train(**{"max_steps": 4, "save_steps": 2, **changes}) == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("ascend-m1: error: ")


def test_a_named_checkpoint_is_where_a_run_begins(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Then the run goes on from its own, is recorded, and finished once, like any other."""
    named = {"output_dir": "other", "resume_from_checkpoint": "out/checkpoint-2"}
    assert train(max_steps=4, save_steps=1, **named) == 0
    one, other = (load_file(Path(name, "adapter_model.safetensors")) for name in ("out", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    recipe = read_recipe(Path("recipe.yaml"))
    assert starting_point(recipe, False) == "other/checkpoint-4"
    assert finished_steps(recipe) == 4
    assert "was begun with max_steps=4, the recipe says 8" in refusal(capsys, max_steps=8, **named)
    assert "was begun with resume_from_checkpoint='out/checkpoint-2', the recipe says 'out/checkpoint-4'" in refusal(
        capsys, **named | {"resume_from_checkpoint": "out/checkpoint-4"}
    )
    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    assert refusal(capsys, **named | {"output_dir": "mine"}).startswith("output_dir mine is not empty and has no check")


def test_a_run_goes_back_to_a_checkpoint_of_its_own(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = {"resume_from_checkpoint": "out/checkpoint-2"}
    assert "was begun with lora_rank=4, the recipe says 8" in refusal(capsys, lora_rank=8, **named)
    before = Path("out/checkpoint-4").stat().st_mtime_ns
    assert train(max_steps=4, save_steps=2, **named) == 0
    assert Path("out/checkpoint-4").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resume_from_checkpoint", "out/checkpoint-2"),
        ("adapter_models", "out"),
        ("model_name_or_path", "out/base-4bit"),
    ],
)
def test_what_a_run_begins_with_is_not_removed(key: str, value: str, begun: Path) -> None:
    other = {"model_name_or_path": ["model_id=null"], "adapter_models": ["lora_rank=null"]}.get(key, [])
    changes = [f"{key}={value}", "overwrite_output_dir=true", *other]
    with pytest.raises(InputError, match=f"^overwrite_output_dir removes {key} {value}: give another output_dir"):
        starting_point(read_recipe(Path("recipe.yaml"), changes), True)
    assert Path("out/checkpoint-2").exists()


def test_checkpoints_without_a_record_are_not_gone_on_from(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out/recipe.json").unlink()
    assert refusal(capsys) == (
        "output_dir out has checkpoints without recipe.json: give another, name one as resume_from_checkpoint, or set "
        "overwrite_output_dir: true"
    )
    recipe = read_recipe(Path("recipe.yaml"), ["resume_from_checkpoint=out/checkpoint-2"])
    assert starting_point(recipe, True) == "out/checkpoint-2"


def test_not_to_resume_is_another_folder_or_to_overwrite(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, resume_from_checkpoint=False) == (
        "resume_from_checkpoint: false: output_dir out has checkpoints: give another, or set overwrite_output_dir: true"
    )
    assert starting_point(dataclasses.replace(read_recipe(Path("recipe.yaml")), output_dir="new"), True) is None


def test_other_rows_and_another_number_of_processes_are_another_run(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = read_recipe(Path("recipe.yaml"))
    with pytest.raises(InputError, match="was begun with 1 process, now there are 2: give another output_dir"):
        starting_point(recipe, True, 2)
    rows = Path("rows.json").read_text()
    Path("rows.json").write_text(rows.replace("elephant", "mouse"))
    assert "out: was begun with other rows in the files of its dataset: give another output_dir" in refusal(capsys)
    Path("rows.json").write_text(rows)
    assert starting_point(recipe, True, 1) == "out/checkpoint-4"


def test_a_run_without_checkpoints_is_finished_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed while its result was moved into the folder, it begins anew."""
    alone = {"max_steps": 1, "save_strategy": "no"}
    assert train(**alone) == 0
    report = Path("out/report.html").read_text()  # of fewer updates than logging_steps
    assert "<td>updates</td><td>1</td>" in report
    assert "loss, first and last logged" in report
    before = Path("out/adapter_model.safetensors").stat().st_mtime_ns
    assert train(**alone) == 0
    assert "out: finished already, 1 updates; ask it" in capsys.readouterr().err
    assert Path("out/adapter_model.safetensors").stat().st_mtime_ns == before
    assert "was begun with lora_rank=4, the recipe says 8" in refusal(capsys, **alone, lora_rank=8)
    assert starting_point(read_recipe(Path("recipe.yaml"), ["lora_rank=4"]), True) is None
    Path("out/adapter_config.json").unlink()
    assert train(**alone) == 0
    assert Path("out/adapter_config.json").exists()
