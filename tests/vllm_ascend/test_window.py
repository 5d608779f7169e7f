"""The report on vllm-ascend's window says what the operator does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPORT = Path(__file__).parents[2] / "docs" / "vllm-ascend-window.md"


def test_the_program_in_the_report_prints_what_it_says() -> None:
    program = re.findall(r"```python\n(import .*?)```", REPORT.read_text(encoding="utf-8"), re.DOTALL)[0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["4 5.0", "3 5.5"]
