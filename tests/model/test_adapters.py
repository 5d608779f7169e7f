"""Adapters beside each other in one batch equal PEFT's, each by itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.adapters import AdapterSlots, read_adapter
from ascend_m1.errors import CheckpointError, InputError
from ascend_m1.inference import InferenceModel
from ascend_m1.paged import PagedCache
from ascend_m1.steps import Chunk, prefill_step

from .golden import load_model, load_prompts

CASE = "published-ratio"
ALL = ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]


def fresh() -> BaichuanM1ForCausalLM:
    """In float64: what should be equal is then equal to 1e-9, far from any real difference."""
    return copy.deepcopy(load_model(CASE)).double()


def save_adapter(folder: Path, seed: int, **options: object) -> Path:
    """A random adapter, made and saved by PEFT."""
    torch.manual_seed(seed)
    config = LoraConfig(init_lora_weights=False, **{"r": 4, "lora_alpha": 8, "target_modules": ALL} | options)
    model = get_peft_model(copy.deepcopy(load_model(CASE)), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.mul_(4)
    model.save_pretrained(folder)
    return folder


def by_peft(ids: Tensor, folder: Path | None) -> Tensor:
    model: torch.nn.Module = fresh()
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder).double()
    with torch.no_grad():
        logits: Tensor = model.eval()(ids[None]).logits[0, -1]
    return logits


def serving(count: int = 3, rank: int = 8) -> tuple[InferenceModel, AdapterSlots]:
    model = InferenceModel(fresh(), 64)
    return model, AdapterSlots(model, count, rank)


def run(model: InferenceModel, texts: list[Tensor], slots: list[int]) -> Tensor:
    cache = PagedCache(model.config, len(texts), len(texts), torch.float64, "cpu")
    chunks = [Chunk(i, [i], 0, ids.tolist(), slot) for i, (ids, slot) in enumerate(zip(texts, slots, strict=True))]
    with torch.no_grad():
        logits: Tensor = model(prefill_step(chunks, cache, torch.device("cpu")), cache)
    return logits


def test_a_mixed_batch_equals_peft(tmp_path: Path) -> None:
    """Other ranks, scales and targets, for some modules too; a slot used again, by an adapter with fewer matrices."""
    folders = [
        save_adapter(tmp_path / "a", 1),
        save_adapter(tmp_path / "b", 2, r=8, use_rslora=True, rank_pattern={"W_pack": 3}, alpha_pattern={r"1\..*": 5}),
        save_adapter(tmp_path / "c", 3, r=1, target_modules=["W_pack", "up_proj"]),
    ]
    model, slots = serving()
    for slot, folder in enumerate(folders, start=1):
        slots.write(slot, read_adapter(folder, model.config))
    texts = [ids for ids, _, _ in load_prompts(CASE)][:4] * 2
    which = [0, 1, 2, 3, 3, 0, 1, 2]
    logits = run(model, texts, which)
    for ids, slot, row in zip(texts, which, logits, strict=True):
        wanted = by_peft(ids, None if slot == 0 else folders[slot - 1])
        torch.testing.assert_close(row, wanted, atol=1e-9, rtol=0)
    slots.write(2, read_adapter(folders[2], model.config))
    logits = run(model, texts[:3], [1, 2, 3])
    for row, ids, folder in zip(logits, texts, (folders[0], folders[2], folders[2]), strict=False):
        torch.testing.assert_close(row, by_peft(ids, folder), atol=1e-9, rtol=0)


def test_without_an_adapter_nothing_changes(tmp_path: Path) -> None:
    model, slots = serving()
    slots.write(2, read_adapter(save_adapter(tmp_path / "a", 1), model.config))
    texts = [ids for ids, _, _ in load_prompts(CASE)]
    assert torch.equal(run(model, texts, [0] * len(texts)), run(InferenceModel(fresh(), 64), texts, [0] * 5))


def test_a_rank_that_does_not_fit(tmp_path: Path) -> None:
    model, slots = serving(rank=3)
    with pytest.raises(InputError, match=r"rank 4: there is room for 3: raise --max-adapter-rank"):
        slots.write(1, read_adapter(save_adapter(tmp_path / "a", 1), model.config))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["lora_A", "lora_B"])
def test_values_that_are_no_numbers(tmp_path: Path, which: str, value: float) -> None:
    """They would be in the products of all requests beside it."""
    folder = save_adapter(tmp_path / "a", 1)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"base_model.model.model.layers.1.mlp.down_proj.{which}.weight"][1, 0] = value
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"layer 1's mlp.down_proj has values that are no finite numbers"):
        read_adapter(folder, load_model(CASE).config)


def test_values_that_the_models_dtype_has_not(tmp_path: Path) -> None:
    model = InferenceModel(fresh().half(), 64)
    slots = AdapterSlots(model, 1, 8)
    adapter = read_adapter(save_adapter(tmp_path / "a", 1, lora_alpha=1e8), model.config)
    with pytest.raises(InputError, match=r"values too large for torch.float16: use --dtype bfloat16"):
        slots.write(1, adapter)
    assert not any(weight.any() for layer in model.layers for projection in (layer.qkv, layer.down)
                   for weight in projection.b)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3': only LORA"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"use_dora": True}, "use_dora=True"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication="),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4': not served"),
        ({"r": 0}, "r=0"),
        ({"lora_alpha": float("inf")}, "lora_alpha=inf"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan"),
        ({"lora_alpha": 10**400}, "lora_alpha=1000"),
        ({"rank_pattern": ["W_pack"]}, r"rank_pattern=\['W_pack'\]: give regular expressions"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern={'\(': 1}: give regular"),
        ({"r": 5}, r"lora_A of layer 0's .* has shape \[4, .*: expected \[5, "),
    ],
)
def test_what_cannot_be_served(tmp_path: Path, options: dict[str, object], message: str) -> None:
    folder = save_adapter(tmp_path / "a", 1)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    with pytest.raises(CheckpointError, match=message):
        read_adapter(folder, load_model(CASE).config)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a", 1)
    path, config = folder / "adapter_model.safetensors", load_model(CASE).config
    tensors = load_file(path)
    name = "base_model.model.model.layers.0.self_attn.W_pack.lora_B.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    with pytest.raises(CheckpointError, match=r"lora_B of layer 0's self_attn.W_pack is missing"):
        read_adapter(folder, config)
    save_file(tensors | {name.replace("layers.0", "layers.99"): tensors[name].clone()}, path)
    with pytest.raises(CheckpointError, match=r"layer 99's .* is missing"):
        read_adapter(folder, config)
    for number in ("x", "-1", "1_0", ""):
        save_file(tensors | {name.replace("layers.0", f"layers.{number}"): tensors[name].clone()}, path)
        with pytest.raises(CheckpointError, match=rf"layers.{number}.self_attn.W_pack.lora_B.weight: only "):
            read_adapter(folder, config)
    save_file(tensors | {"base_model.model.lm_head.lora_A.weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"lm_head.lora_A.weight: only "):
        read_adapter(folder, config)
    filters = "base_model.model.model.layers.0.self_attn.conv_k"
    save_file(tensors | {filters: torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"conv_k: trained filters are not served: merge them with `ascend-m1 ex"):
        read_adapter(folder, config)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_adapter(folder, config)
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist: save the adapter"):
        read_adapter(folder, config)
    with pytest.raises(CheckpointError, match="is not a directory"):
        read_adapter(tmp_path / "nowhere", config)
