"""The programs printed in docs/npu.md run and print what they promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_sample_of_paged_decoding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "npu.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(program, "docs/npu.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "['A00', 'Asthma']"
