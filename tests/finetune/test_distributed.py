"""The recipe of full training in two processes, by DDP and by FSDP2: the losses and weights of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
CHANGES = [
    *("max_steps=4", "logging_steps=1", "save_steps=2", "warmup_steps=1", "disable_tqdm=true", "use_cpu=true"),
    "lr_scheduler_kwargs={num_decay_steps: 2}",
]
TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]


def train(output: Path, *changes: str, processes: int = 2) -> list[float]:
    """The logged losses."""
    program = TWO if processes == 2 else [sys.executable, "-m"]
    command = [*program, "ascend_m1", "train", "finetune/recipes/full_tiny.yaml", f"output_dir={output}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *CHANGES, *changes], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_two_processes_equal_one_and_resume(tmp_path: Path) -> None:
    """float32: the sums over rows are made in two parts. Twice the rows in one process are the rows of two."""
    one = train(tmp_path / "one", "per_device_train_batch_size=4", processes=1)
    weights = load_file(tmp_path / "one" / "model.safetensors")
    fsdp = ("fsdp=true", "fsdp_config={version: 2}")
    for name, changes in (("ddp", ()), ("fsdp", fsdp)):
        torch.testing.assert_close(train(tmp_path / name, *changes), one, rtol=1e-5, atol=0.0)
        found = load_file(tmp_path / name / "model.safetensors")
        assert found.keys() == weights.keys()
        for key in weights:
            torch.testing.assert_close(found[key], weights[key], rtol=0.0, atol=1e-5, msg=f"{name}: {key}")
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    os.rename(tmp_path / "fsdp" / "checkpoint-2", resumed / "checkpoint-2")
    assert train(resumed, *fsdp) == train(tmp_path / "again", *fsdp)
