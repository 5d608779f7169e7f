"""A measurement as a picture: requests under way over time, and the distributions of the latencies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .client import Record
from .report import TITLES, in_flight, latencies

SHOWN = ("ttft", "tpot", "itl", "e2e")


def draw(records: Sequence[Record], duration: float, title: str, path: Path) -> None:
    """Write a PNG.

    Args:
        duration: seconds of the measurement.
    """
    figure = Figure(figsize=(11, 6.5), dpi=110, layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(2, len(SHOWN))
    timeline = figure.add_subplot(grid[0, :])
    times, counts = in_flight(records, duration)
    timeline.step([0, *times], [0, *counts], where="post", linewidth=1)
    timeline.fill_between([0, *times], [0, *counts], step="post", alpha=0.2)
    failures = [record.end for record in records if record.error is not None and record.end is not None]
    if failures:
        timeline.plot(
            failures, [0] * len(failures), "x", color="tab:red", clip_on=False, label=f"{len(failures)} failed"
        )
        timeline.legend(loc="upper right")
    timeline.set(xlabel="seconds", ylabel="requests under way", xlim=(0, duration))
    timeline.set_ylim(bottom=0)
    found = latencies(records)
    for column, name in enumerate(SHOWN):
        axes = figure.add_subplot(grid[1, column])
        axes.set(title=TITLES[name], xlabel="milliseconds", ylim=(0, 1))
        if column == 0:
            axes.set_ylabel("share of all that is at most this")
        if found[name]:
            axes.ecdf([value * 1e3 for value in found[name]])
        axes.grid(alpha=0.3)
    figure.savefig(path)
