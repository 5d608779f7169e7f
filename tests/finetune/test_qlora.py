"""Adapters over quantised weights: gradients of the weights that are meant, and nothing large kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainingArguments

from ascend_m1.adapters import AdapterSlots, read_adapter
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import CheckpointError, ConfigError, InputError
from ascend_m1.inference import InferenceModel
from ascend_m1.paged import PagedCache
from ascend_m1.quantization.packing import pack
from ascend_m1.quantization.read import quantised_parts
from ascend_m1.quantization.scheme import Scheme, quantise
from ascend_m1.quantization.write import quantise_checkpoint
from ascend_m1.steps import Chunk, prefill_step
from ascend_m1_finetune.lora import add_lora
from ascend_m1_finetune.qlora import FrozenLinear, quantised_base, restore

from ..forks import in_processes

SCHEMES = [Scheme(8), Scheme(4, 64)]
IDS = torch.randint(3, 2000, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=SCHEMES, ids=["W8", "W4"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("quantised") / "model"
    quantise_checkpoint(EMBEDDED, made, request.param, lambda done, all: None)
    return made


@given(st.sampled_from([Scheme(8), Scheme(4, 32), Scheme(4, 64)]), st.integers(1, 3), st.integers(1, 20), st.data())
def test_the_product_is_that_of_a_linear_layer(scheme: Scheme, groups: int, outputs: int, data: st.DataObject) -> None:
    """Output and gradient in float32, where the numbers are packed and where they are plain."""
    weight = torch.randn(outputs, 64 * groups)
    numbers, scales = quantise(weight, scheme)
    frozen = FrozenLinear(64 * groups, outputs, scheme)
    frozen.weight_packed.data, frozen.weight_scale.data = pack(numbers, scheme.bits), scales
    linear = nn.Linear(64 * groups, outputs, bias=False)
    linear.weight.data = frozen.weight.as_subclass(Tensor)
    torch.testing.assert_close(linear.weight, weight, atol=float(scales.max()) * 2, rtol=0)
    shape = data.draw(st.sampled_from([(64 * groups,), (5, 64 * groups), (2, 3, 64 * groups)]))
    x, toward = torch.randn(shape), torch.randn(*shape[:-1], outputs)
    outcomes = []
    for module in (frozen, linear):
        given_x = x.clone().requires_grad_(True)
        y = module(given_x)
        (y * toward).sum().backward()
        outcomes.append((y, given_x.grad))
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_training_is_that_over_the_weights_meant(folder: Path, tmp_path: Path) -> None:
    """Four steps of the Trainer with checkpointing beside the same over plain linear layers: 1e-5 in float32."""
    trained = []
    for plain in (False, True):
        base = quantised_base(folder, torch.float32)
        if plain:
            restore(base)
        torch.manual_seed(0)
        lm = add_lora(base, 4, 8, targets="q_proj,v_proj,o_proj,mlp")
        arguments = TrainingArguments(
            str(tmp_path), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, gradient_checkpointing=True,
            use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        Trainer(lm, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in IDS]).train()
        trained.append({name: p for name, p in lm.named_parameters() if "lora_" in name})
    assert any(bool(p.abs().max() > 1e-3) for name, p in trained[0].items() if "lora_B" in name)
    for name, parameter in trained[0].items():
        torch.testing.assert_close(parameter, trained[1][name], atol=1e-5, rtol=1e-3)


def test_no_weight_is_kept_in_full(folder: Path) -> None:
    """Of the matrices 4 or 8 bits a number and the scales stay, and the backward pass holds no copy."""
    base = quantised_base(folder, torch.bfloat16)
    frozen = [module for module in base.modules() if isinstance(module, FrozenLinear)]
    numbers = sum(module.in_features * module.out_features for module in frozen)
    assert len(frozen) == 5 * base.config.num_hidden_layers
    held = sum(p.nbytes for module in frozen for p in module.parameters())
    assert held <= numbers * {8: 8 / 8 + 0.02, 4: 4.25 / 8 + 0.001}[frozen[0].bits]
    shapes = {(module.out_features, module.in_features) for module in frozen}
    kept: list[tuple[int, ...]] = []
    with saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        add_lora(base, 4, 8)(input_ids=IDS, labels=IDS).loss.backward()
    assert kept
    assert not shapes & {*kept, *(shape[::-1] for shape in kept)}


def test_the_adapter_loads_over_the_same_base_and_in_the_engine(folder: Path, tmp_path: Path) -> None:
    """Float32; the engine's product adds in another order: 1e-3 of logits that reach 20."""
    lm = add_lora(quantised_base(folder, torch.float32), 4, 8, targets="q_proj,k_proj,mlp")
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name and "W_pack" not in name:
                parameter.normal_(std=0.05)
        lm.save_pretrained(tmp_path)
        wanted = lm(IDS[:1]).logits[0, -1]
        plain = quantised_base(folder, torch.float32)
        assert (plain(IDS[:1]).logits[0, -1] - wanted).abs().max() > 0.1
        assert torch.equal(PeftModel.from_pretrained(plain, tmp_path)(IDS[:1]).logits[0, -1], wanted)
        serving = InferenceModel(quantised_parts(folder, lm.config, torch.device("cpu"), torch.float32), 64)
        AdapterSlots(serving, 1, 8).write(1, read_adapter(tmp_path, lm.config))
        cache = PagedCache(serving.config, 1, 1, torch.float32, "cpu")
        step = prefill_step([Chunk(0, [0], 0, IDS[0].tolist(), 1)], cache, torch.device("cpu"))
        torch.testing.assert_close(serving(step, cache)[0], wanted, atol=1e-3, rtol=0)


def test_merging_into_numbers_is_refused(folder: Path) -> None:
    lm = add_lora(quantised_base(folder, torch.float32), 4, 8)
    for safe in (False, True):
        with pytest.raises(InputError, match="cannot be merged into quantised weights: use `ascend-m1 export`"):
            lm.merge_and_unload(safe_merge=safe)


def test_folders_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: not quantised: make such a checkpoint with"):
        quantised_base(EMBEDDED, torch.float32)
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight_scale"
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"tensor {name} has shape \[767, "):
        quantised_base(broken, torch.float32)


def gradients(folder: Path, shard: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    lm = add_lora(quantised_base(folder, torch.float32), 4, 8, targets="q_proj,v_proj,mlp")
    if shard:
        mesh = init_device_mesh("cpu", (2,))
        for module in (*lm.get_base_model().model.layers, lm):
            fully_shard(module, mesh=mesh)
    lm(input_ids=IDS, labels=IDS).loss.backward()
    found = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if shard else g for name, g in found.items()}


def compare_gradients(folder: Path, done: Path) -> None:
    whole, sharded = gradients(folder, False), gradients(folder, True)
    assert len(whole) == 4 * 4 * 2
    assert whole.keys() == sharded.keys()
    for name in whole:
        torch.testing.assert_close(sharded[name], whole[name], atol=1e-7, rtol=1e-5)
    (done / f"done-{dist.get_rank()}").touch()


def test_sharded_by_fsdp2_the_gradients_are_the_same(tmp_path: Path) -> None:
    """Numbers, scales and the blocks of q's and v's adapters in two processes, which see the same batch."""
    quantise_checkpoint(EMBEDDED, tmp_path / "model", Scheme(4, 64), lambda done, all: None)
    in_processes(2, tmp_path, compare_gradients, tmp_path / "model", tmp_path)
    assert len(list(tmp_path.glob("done-*"))) == 2
