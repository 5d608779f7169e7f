"""Two processes on a CPU, over gloo, by DDP and by FSDP2: the losses and weights of one process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ascend_m1.cli import main
from ascend_m1.errors import InputError
from ascend_m1_finetune.sharding import check_sharding

from .in_two import ROOT, assert_same_way, logged, train_in_two, words

SHARDED = ("fsdp=true", "fsdp_config={version: 2}")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with twice the rows: the rows of two."""
    folder = tmp_path_factory.mktemp("one") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(["train", *words(folder, "per_device_train_batch_size=4")]) == 0
    return folder


@pytest.mark.parametrize(("changes", "share"), [((), 1.0), (SHARDED, 0.5)], ids=["ddp", "fsdp2"])
def test_two_processes_equal_one_and_resume(one: Path, changes: tuple[str, ...], share: float, tmp_path: Path) -> None:
    """float32: the sums over rows are made in two parts."""
    two, resumed = tmp_path / "two", tmp_path / "resumed"
    assert train_in_two(two, *changes) == pytest.approx([share, share], abs=0.01)
    for key, wanted in logged(one).items():
        torch.testing.assert_close(logged(two)[key], wanted, rtol=1e-5, atol=0.0)
    assert_same_way(two, one)
    train_in_two(resumed, *changes, f"resume_from_checkpoint={two / 'checkpoint-2'}")
    assert logged(resumed) == logged(two)
    found, wanted = load_file(resumed / "model.safetensors"), load_file(two / "model.safetensors")
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_clipping_sees_the_whole_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far above its bound, the norm over both shares sets the size of plain descent's steps. Loaded by one process."""
    monkeypatch.chdir(ROOT)
    clipped = ("adaptive_update_factor=null", "max_grad_norm=0.5", "optim=sgd", "learning_rate=0.1", "save_steps=4")
    assert main(["train", *words(tmp_path / "one", *clipped, "per_device_train_batch_size=4")]) == 0
    loading = "fsdp_config={version: 2, cpu_ram_efficient_loading: true}"
    assert train_in_two(tmp_path / "two", *clipped, "fsdp=true", loading) == pytest.approx([0.5, 0.5], abs=0.01)
    for key, wanted in logged(tmp_path / "one").items():
        torch.testing.assert_close(logged(tmp_path / "two")[key], wanted, rtol=1e-5, atol=0.0)
    assert_same_way(tmp_path / "two", tmp_path / "one")


def test_sharding_that_would_not_happen_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["train", *words(tmp_path, *SHARDED)]) == 2
    assert "error: fsdp in one process: it shards over several" in capsys.readouterr().err
    first: Any = SimpleNamespace(fsdp=True, deepspeed=None, world_size=2, device=torch.device("cpu"))
    first.fsdp_plugin_args = {"fsdp_version": 1}
    with pytest.raises(InputError, match="fsdp on CPUs by FSDP1"):
        check_sharding(first)
