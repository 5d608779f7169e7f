"""The real DeepSpeed: ZeRO-3 over two processes on a CPU has the losses and weights of one process without it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ascend_m1.cli import main
from tests.finetune.in_two import ROOT, assert_same_way, logged, train_in_two, words

RECIPE = "finetune/recipes/full_zero3_tiny.yaml"
COSINE = "lr_scheduler_kwargs=null"  # it has none


def test_two_processes_equal_one_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32: the sums over rows are made in two parts."""
    monkeypatch.chdir(ROOT)
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    alone = words(one, COSINE, "deepspeed=null", "per_device_train_batch_size=4", recipe=RECIPE)
    assert main(["train", *alone]) == 0
    assert train_in_two(two, COSINE, recipe=RECIPE) == pytest.approx([0.5, 0.5], abs=0.01)
    for key, wanted in logged(one).items():
        torch.testing.assert_close(logged(two)[key], wanted, rtol=1e-5, atol=0.0)
    assert_same_way(two, one)
    train_in_two(resumed, COSINE, f"resume_from_checkpoint={two / 'checkpoint-2'}", recipe=RECIPE)
    assert logged(resumed) == logged(two)


def test_one_process_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["train", *words(tmp_path, COSINE, recipe=RECIPE)]) == 2
    assert "error: deepspeed in one process: it shards over several" in capsys.readouterr().err
