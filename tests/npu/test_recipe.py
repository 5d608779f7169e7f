"""The tiny recipes on the npu device, with the CPU's losses: LoRA as it is, all weights on two devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ascend_m1_hostnpu as hostnpu
from ascend_m1.cli import main

from ..finetune.in_two import assert_same_way

ROOT = Path(__file__).parents[2]
MOST_LAUNCHES = 700  # of a step of lora_tiny.yaml, as docs/npu.md says
CHANGES = ("max_steps=10", "save_steps=10", "logging_steps=1", "disable_tqdm=true")


def losses(folder: Path, steps: int = 10) -> list[float]:
    state = json.loads((folder / f"checkpoint-{steps}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def launches_per_step(launches: list[hostnpu.Launch], weights: int) -> list[Counter[str]]:
    """By name, from one update of the last of so many weights to the next; the first step is left out."""
    updates = [index for index, launch in enumerate(launches) if launch.name == "aclnnApplyAdamWV2"]
    ends = updates[weights - 1 :: weights]
    return [Counter(one.name for one in launches[begin + 1 : end + 1]) for begin, end in pairwise(ends)]


def test_the_recipe_runs_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Trainer finds the device by itself. Ten steps carry float32's rounding on."""
    monkeypatch.chdir(ROOT)
    recipe = "finetune/recipes/lora_tiny.yaml"
    with hostnpu.recording() as log:
        assert main(["train", recipe, f"output_dir={tmp_path / 'npu'}", *CHANGES]) == 0
    assert log.counts()["aclnnFlashAttentionVarLenScore"] == 10 * 4
    assert main(["train", recipe, f"output_dir={tmp_path / 'cpu'}", "use_cpu=true", *CHANGES]) == 0
    on_npu, on_cpu = losses(tmp_path / "npu"), losses(tmp_path / "cpu")
    assert on_cpu[-1] < on_cpu[0]
    torch.testing.assert_close(on_npu, on_cpu, rtol=1e-4, atol=0.0)
    weights = load_file(tmp_path / "npu/adapter_model.safetensors").keys()
    assert weights == load_file(tmp_path / "cpu/adapter_model.safetensors").keys()
    steps = launches_per_step(log.kernels, len(weights))
    assert len(steps) == 9
    assert all(step == steps[0] for step in steps)
    with capsys.disabled():
        print(f"\nlaunches of a step of {recipe}: {steps[0].total()}, {dict(steps[0].most_common())}")
    assert steps[0].total() <= MOST_LAUNCHES


FULL = "finetune/recipes/full_tiny.yaml"
SHORT = (
    *("max_steps=3", "logging_steps=1", "save_steps=3", "warmup_steps=1", "disable_tqdm=true"),
    "lr_scheduler_kwargs={num_decay_steps: 1}",
)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process on the CPU with the rows of two."""
    folder = tmp_path_factory.mktemp("cpu") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        alone = [FULL, f"output_dir={folder}", *SHORT, "use_cpu=true", "per_device_train_batch_size=4"]
        assert main(["train", *alone]) == 0
    return folder


@pytest.mark.parametrize("sharding", [(), ("fsdp=true", "fsdp_config={version: 2}")], ids=["ddp", "fsdp2"])
def test_full_training_on_two_devices(
    sharding: tuple[str, ...], on_cpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over hccl, FSDP2 by words of the recipe; float32."""
    monkeypatch.chdir(ROOT)
    words = [FULL, f"output_dir={tmp_path / 'npu'}", *SHORT, *sharding]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29641"}
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "ops", "finetune", "serve"))
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "ascend_m1_hostnpu", "--devices", "2", "-m", "ascend_m1", "train", *words],
            env={**os.environ, **group, "PYTHONPATH": paths, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()  # one that failed leaves the other waiting
    assert [process.returncode for process in started] == [0, 0], errors[0][-3000:]
    torch.testing.assert_close(losses(tmp_path / "npu", 3), losses(on_cpu, 3), rtol=1e-4, atol=0.0)
    assert_same_way(tmp_path / "npu", on_cpu)
