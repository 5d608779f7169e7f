"""scripts/test.sh: what each suite hands to pytest, with Pythons that only say what they are asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAY = """#!/bin/sh
case "$2" in pip) ;; pytest) shift 2; printf '%s ' "$@" ;; esac
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The script and what it reads."""
    for folder in ("scripts", "requirements"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def asked(copy: Path, environment: str, *arguments: str) -> list[str]:
    """The words that pytest of that environment gets."""
    for folder in {".venv", environment}:  # others lie on top of .venv
        python = copy / folder / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(SAY)
        python.chmod(0o755)
    command = ["bash", copy / "scripts" / "test.sh", *arguments]
    ran = subprocess.run(command, env={**os.environ, "TORCH_SPEC": "none"}, capture_output=True, text=True, check=True)
    return ran.stdout.split()


@pytest.mark.parametrize(
    ("suite", "environment", "kept"),
    [
        ("mindspore", ".venvs/mindspore", ["--confcutdir", "tests/mindspore", "-n", "2", "--dist", "loadgroup"]),
        ("npu", ".venvs/npu", ["-n", "2", "--dist", "worksteal"]),
        ("floor", ".venvs/floor", ["-n", "2", "--dist", "worksteal"]),
        ("lowering", ".venvs/lowering", ["-n", "2", "--dist", "worksteal"]),
        ("deepspeed", ".venvs/deepspeed", []),
    ],
)
def test_a_path_takes_the_folders_place_and_leaves_the_options(
    copy: Path, suite: str, environment: str, kept: list[str]
) -> None:
    path = f"tests/{suite}/test_one.py"
    assert asked(copy, environment, suite, path, "-k", "x") == [*kept, path, "-k", "x"]


def test_without_a_path_the_folder(copy: Path) -> None:
    assert asked(copy, ".venvs/mindspore", "mindspore", "-x")[-2:] == ["tests/mindspore", "-x"]


def test_what_python_compiles_is_kept(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip compiles nothing here: without this every process would compile torch and transformers again."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(f"{__name__}.SAY", f'{SAY}printf %s "${{PYTHONDONTWRITEBYTECODE-kept}}"\n')
    assert asked(copy, ".venvs/npu", "npu")[-1].endswith("kept")
