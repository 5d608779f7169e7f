"""The tiny LoRA recipe as it is, on the npu device: ten updates with the CPU's losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ascend_m1_hostnpu as hostnpu
from ascend_m1.cli import main

from .tiny import few_programs

ROOT = Path(__file__).parents[2]
CHANGES = ("max_steps=10", "save_steps=10", "logging_steps=1", "disable_tqdm=true")


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "checkpoint-10" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_the_recipe_runs_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer finds the device by itself. Ten steps carry float32's rounding on."""
    few_programs(monkeypatch)
    monkeypatch.chdir(ROOT)
    recipe = "finetune/recipes/lora_tiny.yaml"
    with hostnpu.recording() as log:
        assert main(["train", recipe, f"output_dir={tmp_path / 'npu'}", *CHANGES]) == 0
    assert log.counts()["aclnnFlashAttentionVarLenScore"] == 10 * 4
    assert main(["train", recipe, f"output_dir={tmp_path / 'cpu'}", "use_cpu=true", *CHANGES]) == 0
    on_npu, on_cpu = losses(tmp_path / "npu"), losses(tmp_path / "cpu")
    assert on_cpu[-1] < on_cpu[0]
    torch.testing.assert_close(on_npu, on_cpu, rtol=1e-4, atol=0.0)
    assert load_file(tmp_path / "npu/adapter_model.safetensors").keys() == (
        load_file(tmp_path / "cpu/adapter_model.safetensors").keys()
    )
