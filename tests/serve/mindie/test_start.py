"""What a config.json makes of an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from ascend_m1.errors import ConfigError
from ascend_m1_serve.mindie import start
from ascend_m1_serve.mindie.config import read_config
from ascend_m1_serve.mindie.environment import Environment
from ascend_m1_serve.mindie.start import chosen_device, wanted_engine

from .configs import SHIPPED, change, content, written

DEPLOY, SCHEDULE = "BackendConfig.ModelDeployConfig.", "BackendConfig.ScheduleConfig."


def test_room_for_adapters(tmp_path: Path) -> None:
    changed = change(change(content(), f"{DEPLOY}maxLoras", 3), f"{DEPLOY}maxLoraRank", 64)
    path = written(tmp_path, changed)
    found = read_config(path, Environment())
    assert f"{DEPLOY}maxLoraRank" not in found.idle
    wanted = wanted_engine(found, path, Environment(), several=False)
    assert (wanted.max_adapters, wanted.max_adapter_rank) == (3, 64)


def test_the_vendors_batch_size(tmp_path: Path) -> None:
    """Its default, 200, is more than a step of the built-in engine takes: the others wait."""
    path = written(tmp_path, change(content(), f"{SCHEDULE}maxBatchSize", 200))
    config = read_config(path, Environment())
    assert config.max_sequences == 200
    assert wanted_engine(config, path, Environment(), several=False).max_sequences == 128


@pytest.mark.parametrize(
    ("asked", "problem", "installed", "device"),
    [
        ("auto", None, True, "npu:0"),
        ("cpu", None, True, "cpu"),
        ("cpu", "torch-npu does not load", True, "cpu"),
        ("auto", "torch-npu is not installed", False, "auto"),
        ("auto", "torch-npu does not load", True, None),
    ],
)
def test_an_npu_that_cannot_be_used_is_told_of(
    asked: str, problem: str | None, installed: bool, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And refused where torch-npu is installed: 14 B parameters on a CPU are not what was asked for."""
    monkeypatch.setattr(start, "npu_problem", lambda: problem)
    monkeypatch.setattr(start, "find_spec", lambda name: name if installed else None)
    config = read_config(SHIPPED, Environment())
    text = f"{SHIPPED}: BackendConfig.npuDeviceIds=[[0]]: {problem}"
    if device is None:
        with pytest.raises(ConfigError) as caught:
            chosen_device(config, SHIPPED, asked)
        assert str(caught.value) == f"{text}: give --device cpu"
        return
    reason = None if asked == "cpu" or problem is None else text
    assert chosen_device(config, SHIPPED, asked) == (device, reason)
    assert wanted_engine(config, SHIPPED, Environment(), False, device).device == device
