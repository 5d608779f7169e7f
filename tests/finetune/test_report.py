"""The report of a run draws what was logged; memory is logged in bytes."""

from __future__ import annotations

import base64
import io
import re
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from transformers import TrainerControl, TrainerState

from ascend_m1_finetune import report, trainer


@pytest.mark.parametrize(
    ("steps", "missing"), [((1, 2, 5), set()), ((1, 2, 5), {"skipped_updates", "memory_gb"}), ((3,), set())]
)
def test_each_value_that_is_logged_has_its_plot(
    steps: tuple[int, ...], missing: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    class Kept(Figure):  # type: ignore[misc, unused-ignore]
        def savefig(self, *args: Any, **options: Any) -> None:
            drawn.append(self)
            super().savefig(*args, **options)

    monkeypatch.setattr(report, "Figure", Kept)
    names = [name for name in report.PLOTS if name not in missing]
    history = [{"step": step, **{name: step * 10 + i for i, name in enumerate(names)}} for step in steps]
    report.write_report(tmp_path / "report.html", "a run", {}, [*history, {"step": steps[-1], "train_runtime": 3.0}])
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [report.PLOTS[name] for name in names]
    for i, axes in enumerate(figure.axes):
        (line,) = axes.get_lines()
        assert line.get_xydata().tolist() == [[step, step * 10 + i] for step in steps]
        assert len(steps) > 1 or line.get_marker() == "."  # a line of one point is not seen
    found = re.search(r"data:image/png;base64,([^\"]+)", (tmp_path / "report.html").read_text())
    assert found
    picture = imread(io.BytesIO(base64.b64decode(found[1])))
    assert picture.std() > 0.01  # not blank


def test_a_run_without_a_log_has_no_picture(tmp_path: Path) -> None:
    report.write_report(tmp_path / "report.html", "a run", {}, [{"step": 3, "train_runtime": 3.0}])
    text = (tmp_path / "report.html").read_text()
    assert "<td>updates</td><td>3</td>" in text
    assert "nothing was logged: see logging_strategy" in text
    assert "<img" not in text


def test_memory_is_in_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """getrusage counts KiB on Linux and bytes on macOS; Windows has none."""
    cpu, now = torch.device("cpu"), resource.getrusage(resource.RUSAGE_SELF)
    monkeypatch.setattr(resource, "getrusage", lambda who: now)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert trainer._peak_memory(cpu) == now.ru_maxrss * 1024
    assert now.ru_maxrss * 1024 > pages * resource.getpagesize() // 2
    monkeypatch.setattr(sys, "platform", "darwin")
    assert trainer._peak_memory(cpu) == now.ru_maxrss
    monkeypatch.setattr(sys, "platform", "win32")
    assert trainer._peak_memory(cpu) is None
    state = TrainerState(log_history=[{}])
    measures, logs = trainer.Measures(), {"loss": 1.0}
    arguments: Any = SimpleNamespace(device=cpu)
    measures.on_train_begin(arguments, state, TrainerControl())
    measures.on_log(arguments, state, TrainerControl(), logs)
    assert logs.keys() == {"loss", "tokens_per_second"}
