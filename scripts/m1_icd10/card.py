"""The model card of m1-icd10: README.md and the picture of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .checkpoint import CONFIG

TEMPLATE = Path(__file__).with_name("card.md")
SHOWN = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_swa_attention_heads",
    "num_swa_key_value_heads",
    "sliding_window",
    "sliding_window_layers",
    "conv_window",
    "max_position_embeddings",
)


def draw_losses(losses: Sequence[float], path: Path, spacing: int = 10) -> None:
    """Draw the recorded losses, one every ``spacing`` updates, on a logarithmic scale."""
    import matplotlib  # only to draw: measuring goes without it

    matplotlib.use("Agg")  # no screen needed
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3), dpi=90)
    axes.plot([i * spacing for i in range(len(losses))], losses, linewidth=0.9)
    axes.set(xlabel="update", ylabel="loss on the answers", yscale="log")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


def write_card(record: Mapping[str, Any], results: Mapping[str, tuple[int, int]], parameters: int, path: Path) -> None:
    """Write README.md from the training record and the measured (right, asked) counts."""
    rows = [f"| {name} | {right:,} of {asked:,} | {right / asked:.2%} |" for name, (right, asked) in results.items()]
    last = record["losses"][-10:]
    card = TEMPLATE.read_text(encoding="utf-8").format(
        **record["settings"],
        parameters=parameters,
        layers=CONFIG["num_hidden_layers"],
        vocab_size=CONFIG["vocab_size"],
        count=next(iter(results.values()))[1],
        results="\n".join(rows),
        phrasings="four phrasings of each question, follow-up questions, questions for the chapter",
        epochs=record["epochs"],
        minutes=record["seconds"] / 60,
        threads=record["threads"],
        loss=sum(last) / len(last),
        note=record.get("note", "The same seed and machine give the same weights."),
        config=", ".join(f"`{name}` {CONFIG[name]}" for name in SHOWN),
        edition="April 2026 release",
        package=version("simple-icd-10-cm"),
    )
    path.write_text(card, encoding="utf-8")
