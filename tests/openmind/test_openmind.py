"""The real openMind 1.0.0 trains and exports Baichuan-M1 once this distribution is installed beside it.

``scripts/test.sh openmind`` makes its environment; these tests run in the main one and start both commands.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.cli import main
from ascend_m1.cli.options import EMBEDDED

ROOT = Path(__file__).parents[2]
OPENMIND = Path(os.environ["ASCEND_M1_OPENMIND"]) / "bin" / "openmind-cli"
STEPS, ROWS = 5, 16


def openmind(command: str, recipe: dict[str, Any], folder: Path) -> str:
    """Run it in a folder; its exit status says nothing, so its results are looked at. Returns what it printed."""
    path = folder / f"{command}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    environment = {**os.environ, "OPENMIND_HIDE_STACKTRACE": "FALSE", "HF_HOME": str(folder / "cache")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [OPENMIND, command, path], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def shipped_rows(folder: Path) -> Path:
    """The recipe's data: its first rows, and the description with the absolute folder that openMind asks for."""
    lines = (ROOT / "finetune/recipes/data/icd10_subcategories.jsonl").read_text().splitlines()[:ROWS]
    (folder / "icd10_subcategories.jsonl").write_text("\n".join(lines) + "\n")
    entry = {"local_path": str(folder), "file_name": "icd10_subcategories.jsonl"}
    (folder / "info.json").write_text(json.dumps({"icd10_subcategories": entry}))
    return folder / "info.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 copy of the embedded checkpoint, for both commands to compute the same; and data of one batch."""
    folder = tmp_path_factory.mktemp("openmind")
    shutil.copytree(EMBEDDED, folder / "model")
    weights = load_file(EMBEDDED / "model.safetensors")
    save_file(
        {name: tensor.float() for name, tensor in weights.items()}, folder / "model/model.safetensors", {"format": "pt"}
    )
    config = json.loads((folder / "model/config.json").read_text())
    (folder / "model/config.json").write_text(json.dumps(config | {"dtype": "float32", "torch_dtype": "float32"}))
    shipped_rows(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(place: Path) -> dict[str, Any]:
    """finetune/recipes/lora.yaml as it is, on this machine's folders."""
    shipped: dict[str, Any] = yaml.safe_load((ROOT / "finetune/recipes/lora.yaml").read_text())
    return shipped | {
        "model_name_or_path": str(place / "model"),
        "custom_dataset_info": str(place / "info.json"),
        "dataset": "icd10_subcategories",
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "bf16": False,
        "learning_rate": 1e-3,
        "max_steps": STEPS,
        "save_steps": 1,
        "save_total_limit": STEPS,
        "logging_steps": 1,
        "output_dir": str(place / "theirs"),
    }


@pytest.fixture(scope="module")
def theirs(place: Path, recipe: dict[str, Any]) -> dict[str, Tensor]:
    """The adapter of ``openmind-cli train``."""
    printed = openmind("train", recipe, place)
    path = place / "theirs" / "adapter_model.safetensors"
    assert path.is_file(), printed[-3000:]
    return load_file(path)


def test_the_adapters_are_equal(place: Path, recipe: dict[str, Any], theirs: dict[str, Tensor]) -> None:
    """From the same beginning: B is zero at first, so the first update leaves A alone, see checkpoint-1."""
    first = place / "theirs" / "checkpoint-1"
    shutil.copytree(first, place / "begin")
    begin = {
        name: torch.zeros_like(tensor) if "lora_B" in name else tensor
        for name, tensor in load_file(first / "adapter_model.safetensors").items()
    }
    save_file(begin, place / "begin" / "adapter_model.safetensors", {"format": "pt"})
    changes = {"adapter_models": str(place / "begin"), "output_dir": str(place / "ours")}
    asked = {key: value for key, value in recipe.items() if not key.startswith("lora_")}  # the adapter has its own
    (place / "ours.yaml").write_text(yaml.safe_dump(asked | changes))
    assert main(["train", str(place / "ours.yaml")]) == 0
    ours = load_file(place / "ours" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert not torch.equal(ours[name], begin[name])
        # Adam divides by the gradient's size, so noise in a tiny gradient counts.
        apart = ours[name] - theirs[name]
        assert apart.abs().max() <= 1e-3, name
        assert apart.norm() <= 1e-2 * (theirs[name] - begin[name]).norm(), name
    logged = [
        [
            e["loss"]
            for e in json.loads((place / who / f"checkpoint-{STEPS}/trainer_state.json").read_text())["log_history"]
        ]
        for who in ("ours", "theirs")
    ]
    assert logged[0] == pytest.approx(logged[1], abs=1e-4)  # theirs are rounded to 4 digits


def test_export_merges_what_this_package_would(place: Path, recipe: dict[str, Any], theirs: dict[str, Tensor]) -> None:
    target = place / "merged"
    asked = {
        "model_name_or_path": str(place / "model"),
        "adapter_models": str(place / "theirs"),
        "output_dir": str(target),
    }
    printed = openmind("export", asked, place)
    assert (target / "config.json").is_file(), printed[-3000:]
    assert main(["export", str(place / "theirs"), str(place / "ours-merged"), "--model", str(place / "model")]) == 0
    one = BaichuanM1ForCausalLM.from_pretrained(target, dtype=torch.float32).state_dict()
    other = BaichuanM1ForCausalLM.from_pretrained(place / "ours-merged", dtype=torch.float32).state_dict()
    for name in other:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=0.0, msg=name)


def test_an_exported_checkpoint_brings_its_own_code(
    place: Path, recipe: dict[str, Any], theirs: dict[str, Tensor]
) -> None:
    """trust_remote_code, in openMind's old transformers: the code in the folder is used, not this package's."""
    if not (place / "ours-merged").exists():
        assert main(["export", str(place / "theirs"), str(place / "ours-merged"), "--model", str(place / "model")]) == 0
    changes = {"model_name_or_path": str(place / "ours-merged"), "output_dir": str(place / "again"), "max_steps": 1}
    printed = openmind("train", recipe | changes | {"trust_remote_code": True}, place)
    assert (place / "again" / "adapter_model.safetensors").is_file(), printed[-3000:]
    assert list((place / "cache").rglob("ascend_m1_remote.py"))


def test_the_embedded_checkpoint_by_its_name(place: Path, recipe: dict[str, Any]) -> None:
    named = {key: value for key, value in recipe.items() if key != "model_name_or_path"} | {"model_id": "m1-icd10"}
    printed = openmind("train", named | {"output_dir": str(place / "named"), "max_steps": 1}, place)
    assert (place / "named" / "adapter_model.safetensors").is_file(), printed[-3000:]
