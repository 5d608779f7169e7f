"""ops/README.md lists what the package exports: every name once, in the section of its folder, and nothing else."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import ascend_m1_ops

PACKAGE = Path(ascend_m1_ops.__file__).parent
CATALOGUE = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", CATALOGUE, flags=re.MULTILINE | re.DOTALL))
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob("*/reference.py"))
ROWS = ["exports", "formula", "shapes", "dtypes", "CPU", "NPU", "backward", "tolerance"]


def listed(section: str) -> list[str]:
    (line,) = re.findall(r"^\| exports \| (.*) \|$", section, flags=re.MULTILINE)
    return re.findall(r"`(\w+)`", line)


def test_catalogue_lists_exactly_the_exports() -> None:
    names = [name for section in SECTIONS.values() for name in listed(section)]
    assert sorted(names) == sorted(ascend_m1_ops.__all__)


def test_one_section_for_each_folder() -> None:
    assert sorted(SECTIONS) == FOLDERS


@pytest.mark.parametrize("folder", FOLDERS)
def test_section(folder: str) -> None:
    """It lists its folder's exports, has every row, and the folder looks like the others."""
    module = importlib.import_module(f"ascend_m1_ops.{folder}")
    assert sorted(listed(SECTIONS[folder])) == sorted(module.__all__)
    assert re.findall(r"^\| (\w+) \|", SECTIONS[folder], flags=re.MULTILINE) == ROWS
    assert {"__init__.py", "reference.py", "kernels.py"} <= {path.name for path in (PACKAGE / folder).iterdir()}
    assert any(name.endswith("_reference") for name in module.__all__)
    assert "Source:" in (module.__doc__ or "")
