"""A run's report: one HTML file with its recipe, its course as plots, and the numbers at the end."""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ascend_m1.writing import writing

# What is logged, and what it is called; a run that does not log it has no plot of it.
PLOTS = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "skipped_updates": "updates left out",
    "tokens_per_second": "tokens/s",
    "memory_gb": "memory, GB at most",
}
_STYLE = "body{font:15px sans-serif;max-width:60em;margin:2em auto}td{padding:.2em 1em .2em 0}pre{background:#f4f4f4}"


def write_report(path: Path, title: str, recipe: dict[str, Any], history: Sequence[dict[str, Any]]) -> None:
    """Write the file at once and whole.

    Args:
        recipe: what was trained, shown as it is.
        history: the Trainer's log_history.

    Raises:
        CheckpointError: no space is left.
    """
    logged = [entry for entry in history if "loss" in entry]
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in summary(history).items())
    given = html.escape(json.dumps({key: value for key, value in recipe.items() if value is not None}, indent=1))
    plots = "<p>nothing was logged: see logging_strategy</p>"
    if logged:
        plots = f'<img alt="course of the run" width="100%" src="data:image/png;base64,{_plots(logged)}">'
    text = (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1><table>{rows}</table>"
        f"{plots}<h2>Recipe</h2><pre>{given}</pre></html>\n"
    )
    beside = path.with_name(f".{path.name}.part")
    with writing(path, beside, "then run it again"):
        beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def summary(history: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The numbers of a run: first and last loss, updates, tokens, speed and memory."""
    logged = [entry for entry in history if "loss" in entry]
    updates = {"updates": f"{max((entry['step'] for entry in history), default=0):,}"}
    if not logged:
        return updates
    speeds = sorted(entry["tokens_per_second"] for entry in logged if "tokens_per_second" in entry)
    found = {
        **updates,
        "loss, first and last logged": f"{logged[0]['loss']:.4f}, {logged[-1]['loss']:.4f}",
        "updates left out": str(logged[-1].get("skipped_updates", "")),
        "tokens": f"{logged[-1].get('num_input_tokens_seen', 0):,}",
        "tokens/s, median": f"{speeds[len(speeds) // 2]:,}" if speeds else "",
        "memory, GB at most": str(max((entry.get("memory_gb", 0) for entry in logged), default="")),
    }
    return {name: value for name, value in found.items() if value}


def _plots(logged: Sequence[dict[str, Any]]) -> str:
    """PNG, base64."""
    present = [name for name in PLOTS if any(name in entry for entry in logged)]
    figure = Figure(figsize=(12, 3 * max(1, -(-len(present) // 2))), layout="constrained")
    for place, name in enumerate(present, start=1):
        axes = figure.add_subplot(-(-len(present) // 2), 2, place)
        points = [(entry["step"], entry[name]) for entry in logged if name in entry]
        axes.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 3 else None)  # one is no line
        axes.set(title=PLOTS[name], xlabel="update")
        axes.grid(alpha=0.3)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=80)
    return base64.b64encode(stream.getvalue()).decode("ascii")
