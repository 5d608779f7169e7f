"""The report of a run draws what was logged."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from ascend_m1_finetune import report


@pytest.mark.parametrize("missing", [set(), {"skipped_updates", "memory_gb"}])
def test_each_value_that_is_logged_has_its_plot(
    missing: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    class Kept(Figure):  # type: ignore[misc, unused-ignore]
        def savefig(self, *args: Any, **options: Any) -> None:
            drawn.append(self)
            super().savefig(*args, **options)

    monkeypatch.setattr(report, "Figure", Kept)
    names = [name for name in report.PLOTS if name not in missing]
    history = [{"step": step, **{name: step * 10 + i for i, name in enumerate(names)}} for step in (1, 2, 5)]
    report.write_report(tmp_path / "report.html", "a run", {}, [*history, {"step": 5, "train_runtime": 3.0}])
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [report.PLOTS[name] for name in names]
    for i, axes in enumerate(figure.axes):
        (line,) = axes.get_lines()
        assert line.get_xydata().tolist() == [[step, step * 10 + i] for step in (1, 2, 5)]
    found = re.search(r"data:image/png;base64,([^\"]+)", (tmp_path / "report.html").read_text())
    assert found
    picture = imread(io.BytesIO(base64.b64decode(found[1])))
    assert picture.std() > 0.01  # not blank
