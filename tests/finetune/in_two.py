"""The recipe of full training on the embedded checkpoint, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ascend_m1.cli.options import EMBEDDED

ROOT = Path(__file__).parents[2]
RECIPE = "finetune/recipes/full_tiny.yaml"
CHANGES = (
    *("max_steps=4", "logging_steps=1", "save_steps=2", "warmup_steps=1", "disable_tqdm=true", "use_cpu=true"),
    "lr_scheduler_kwargs={num_decay_steps: 2}",
)
# What the command does, and then how much of the weights this process holds: of a DTensor, or of DeepSpeed's parameter.
TRAIN = """
import json, sys
from pathlib import Path
from torch.distributed.tensor import DTensor
from ascend_m1_finetune.recipe import read_recipe
from ascend_m1_finetune.train import train

trainer = train(read_recipe(Path(sys.argv[2]), sys.argv[3:]))
weights = list(trainer.model.parameters())
held = sum((w.to_local() if isinstance(w, DTensor) else getattr(w, "ds_tensor", w)).numel() for w in weights)
report = {"held": held, "all": sum(getattr(w, "ds_numel", w.numel()) for w in weights)}
Path(sys.argv[1] + f".rank{trainer.args.process_index}").write_text(json.dumps(report))
"""


def words(output: Path, *changes: str, recipe: str = RECIPE) -> list[str]:
    """The recipe and changes, for ``ascend-m1 train``."""
    return [recipe, f"output_dir={output}", *CHANGES, *changes]


def train_in_two(output: Path, *changes: str, recipe: str = RECIPE) -> list[float]:
    """The share of the weights that each process holds."""
    script = output.parent / "train.py"
    script.write_text(TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "ops", "finetune", "serve"))
    done = subprocess.run(
        [*command, str(output), *words(output, *changes, recipe=recipe)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(Path(f"{output}.rank{rank}").read_text()) for rank in range(2)]
    return [report["held"] / report["all"] for report in reports]


def logged(output: Path) -> dict[str, list[Any]]:
    """Of the four steps."""
    state = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())
    entries = [entry for entry in state["log_history"] if "loss" in entry]
    return {key: [entry[key] for entry in entries] for key in ("loss", "grad_norm", "learning_rate")}


def assert_same_way(found: Path, wanted: Path) -> None:
    """Each tensor within a thousandth of its way: Adam divides by the gradient's size, noise in a tiny one counts."""
    two, one, begin = (load_file(folder / "model.safetensors") for folder in (found, wanted, EMBEDDED))
    assert two.keys() == one.keys()
    for key, weight in one.items():
        moved = (weight - begin[key].float()).norm()
        assert (two[key] - weight).norm() <= 1e-3 * moved, key
