"""``env``: versions, devices, and the remedy for what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ascend_m1 import environment

from .conftest import Cli


def test_env_names_versions_and_devices(cli: Cli) -> None:
    ran = cli("env", "--json")
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert found["packages"]["torch"] == torch.__version__
    assert found["devices"][0] == "cpu"
    assert found["cpu"]["cores"] >= 1


def test_env_gives_the_remedy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2.10", 'torch-npu>=2.10; extra == "npu"', 'pytest>=8; extra == "dev"']
    lines.append('numpy<2; extra == "mindspore"')
    monkeypatch.setattr(environment, "requires", lambda name: lines)
    monkeypatch.setattr(environment, "installed", lambda name: None if name in ("torch-npu", "numpy") else "1.0")
    monkeypatch.setattr(environment, "npu_problem", lambda: "torch-npu is not installed")
    out = cli("env").out
    assert "extra [npu]: missing torch-npu: pip install -e '.[npu]'" in out
    assert "extra [mindspore]: missing numpy: it needs an environment of its own, see docs/mindspore.md" in out
    assert "extra [dev]: ready" in out
    assert "libhccl.so" in out
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in out


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        ("version.cfg", "# version\nruntime_running_version=[7.5.0.1.129:8.0.RC3]\n", "8.0.RC3"),
        ("version.cfg", "toolkit_installed_version=[8.1.RC1]\n", "8.1.RC1"),
        ("x86_64-linux/ascend_toolkit_install.info", "package_name=x\nversion=8.0.0\n", "8.0.0"),
        ("README", "nothing", None),
    ],
)
def test_toolkit_is_found_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, text: str, version: str | None
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text, encoding="utf-8")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    assert environment.toolkit() == {"path": str(tmp_path), "version": version}
