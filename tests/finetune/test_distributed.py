"""The recipe of full training in two processes, by DDP: the losses and weights of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ascend_m1.cli import main
from ascend_m1.cli.options import EMBEDDED

ROOT = Path(__file__).parents[2]
CHANGES = [
    *("max_steps=4", "logging_steps=1", "save_steps=2", "warmup_steps=1", "disable_tqdm=true", "use_cpu=true"),
    "lr_scheduler_kwargs={num_decay_steps: 2}",
]
TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "ascend_m1"]


def words(output: Path, *changes: str) -> list[str]:
    return ["train", "finetune/recipes/full_tiny.yaml", f"output_dir={output}", *CHANGES, *changes]


def train_in_two(output: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*TWO, *words(output)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def losses(output: Path) -> list[float]:
    state = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_two_processes_equal_one_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32: the sums over rows are made in two parts. Twice the rows in one process are the rows of two."""
    monkeypatch.chdir(ROOT)
    assert main(words(tmp_path / "one", "per_device_train_batch_size=4")) == 0
    train_in_two(tmp_path / "two")
    two = losses(tmp_path / "two")
    torch.testing.assert_close(two, losses(tmp_path / "one"), rtol=1e-5, atol=0.0)
    found, wanted, begin = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "two", tmp_path / "one", EMBEDDED)
    )
    assert found.keys() == wanted.keys()
    for key, weight in wanted.items():  # Adam divides by the gradient's size: noise in a tiny one counts
        moved = (weight - begin[key].float()).norm()
        assert (found[key] - weight).norm() <= 1e-3 * moved, key
    (tmp_path / "resumed").mkdir()
    os.rename(tmp_path / "two" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    train_in_two(tmp_path / "resumed")
    assert losses(tmp_path / "resumed") == two


def test_sharding_that_would_not_happen_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    command = ["train", "finetune/recipes/full_tiny.yaml", f"output_dir={tmp_path}", "use_cpu=true", "fsdp=true"]
    assert main(command) == 2
    assert "error: fsdp with 1 processes on cpu: accelerate shards over devices only" in capsys.readouterr().err
