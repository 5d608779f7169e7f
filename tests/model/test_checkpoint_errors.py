"""Damaged checkpoints and configs: a typed error whose one line names the file or the field, and the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM, BaichuanM1Model
from ascend_m1.checkpoint_files import published_shapes, read_adapter_config, read_json
from ascend_m1.errors import AscendM1Error, CheckpointError, ConfigError
from ascend_m1.weights import expected_shapes

from .geometries import models
from .golden import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "hybrid", tmp_path / "model"))


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in content.items() if value != "DELETE"}))


def refused(folder: Path, kind: type[AscendM1Error], *words: str) -> None:
    with pytest.raises(kind) as caught:
        BaichuanM1ForCausalLM.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": "DELETE"}, ["hidden_size", "missing"]),
        ({"rope_theta": "DELETE"}, ["rope_theta", "missing"]),
        ({"num_swa_key_value_heads": "DELETE"}, ["num_swa_key_value_heads", "missing"]),
        ({"num_attention_heads": 3}, ["num_attention_heads=3", "hidden_size=64"]),
        ({"num_key_value_heads": 0}, ["num_key_value_heads=0"]),
        ({"num_swa_attention_heads": 4, "num_swa_key_value_heads": 3}, ["num_swa_attention_heads=4", "3"]),
        ({"sliding_window": -1}, ["sliding_window=-1"]),
        ({"sliding_window_layers": [1, 9]}, ["sliding_window_layers=[1, 9]", "num_hidden_layers=4"]),
        ({"sliding_window_layers": "odd"}, ["sliding_window_layers='odd'"]),
        ({"conv_window": 4}, ["conv_window=4"]),
        ({"hidden_act": "gelu"}, ["hidden_act='gelu'"]),
        ({"tie_word_embeddings": True}, ["tie_word_embeddings"]),
        ({"vocab_size": "many"}, ["vocab_size='many'"]),
        ({"rms_norm_eps": 0}, ["rms_norm_eps=0"]),
        ({"rope_theta": "big"}, ["rope_theta='big'"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["rope_scaling"]),
        ({"rope_scaling": "big"}, ["rope_scaling='big'"]),
        ({"attention_dropout": 1.5}, ["attention_dropout=1.5"]),
        ({"attention_dropout": "x"}, ["attention_dropout='x'"]),
        ({"dtype": "int3"}, ["dtype='int3'"]),
        ({"torch_dtype": []}, ["torch_dtype=[]"]),
        ({"num_hidden_layers": 3, "sliding_window_layers": [1]}, ["tensor model.layers.3", "num_hidden_layers=3"]),
        ({"intermediate_size": 161}, ["mlp.gate_proj.weight", "[160, 64]", "[161, 64]"]),
    ],
)
def test_config(folder: Path, fields: dict[str, Any], words: list[str]) -> None:
    edit_config(folder, **fields)
    refused(folder, AscendM1Error, *words)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def garble_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[9:40] = b"x" * 31
    path.write_bytes(content)


def drop_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.2.self_attn.conv_v"]
    save_file(tensors, path)


def reshape_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(63)
    save_file(tensors, path)


def lose_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def empty_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, ["model.safetensors", "truncated or corrupt"]),
        (garble_header, ["model.safetensors", "truncated or corrupt"]),
        (drop_tensor, ["model.layers.2.self_attn.conv_v", "missing"]),
        (reshape_tensor, ["model.safetensors", "model.norm.weight", "[63]", "[64]"]),
        (lose_shard, ["model-00001-of-00001.safetensors", "not found"]),
        (empty_index, ["model.safetensors.index.json", "weight_map"]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["no model.safetensors"]),
    ],
)
def test_weights(folder: Path, damage: Callable[[Path], None], words: list[str]) -> None:
    damage(folder)
    refused(folder, CheckpointError, *words)


@pytest.mark.parametrize("content", ["{not json", "[1, 2]", ""])
def test_config_file_is_not_json(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refused(folder, ConfigError, "config.json")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, ConfigError, "config.json", "not found")


def test_the_base_model_loads_from_a_causal_checkpoint(folder: Path) -> None:
    model = BaichuanM1Model.from_pretrained(folder)
    expected = BaichuanM1ForCausalLM.from_pretrained(folder).model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_config_round_trip_keeps_the_published_keys(tmp_path: Path) -> None:
    config = BaichuanM1Config.from_pretrained(ROOT / "hybrid")
    config.save_pretrained(tmp_path)
    published, saved = (json.loads((path / "config.json").read_text()) for path in (ROOT / "hybrid", tmp_path))
    assert {name: saved.get(name) for name in published} == published


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """As the system says; what may be missing is not one of them."""
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\): change its owner or mode$"):
        read_json(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot be read \(File name too long\): give another folder$"):
        read_adapter_config(tmp_path / ("x" * 5000))


@given(model=models())
@settings(max_examples=20)
def test_published_shapes_are_the_models_own(model: BaichuanM1ForCausalLM) -> None:
    """Which MindSpore's path asks for, written without torch."""
    assert published_shapes(model.config) == expected_shapes(model.config, BaichuanM1ForCausalLM)
