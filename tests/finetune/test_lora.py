"""Adapters by role: q, k and v of W_pack apart, exactly; what is saved loads in PEFT and in the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from ascend_m1.adapters import AdapterSlots, read_adapter
from ascend_m1.errors import CheckpointError, InputError
from ascend_m1.inference import InferenceModel
from ascend_m1.paged import PagedCache
from ascend_m1.steps import Chunk, prefill_step
from ascend_m1_finetune.lora import PACKED, BlockLinear, add_lora, load_adapter, lora_config

from ..compat.small import VOCAB, ids, model

RANK, ALPHA = 2, 6


def fill(adapted: PeftModel) -> None:
    """Random weights in A, and in B where it has its blocks."""
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
        for module in adapted.modules():
            if hasattr(module, "outside"):
                module.weight.masked_fill_(module.outside, 0)


def separate(w_pack: nn.Linear, spec: object, a: Tensor, b: Tensor, parts: list[str]) -> nn.Module:
    """The definition: q, k and v as three linear layers, each with an adapter of its own."""
    rows = w_pack.weight.split([spec.q_size, spec.kv_size, spec.kv_size])
    starts = dict(zip(PACKED, (0, spec.q_size, spec.q_size + spec.kv_size), strict=True))

    class Separate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.ParameterList(nn.Parameter(a[i * RANK : (i + 1) * RANK].clone()) for i in range(len(parts)))
            self.b = nn.ParameterList(
                nn.Parameter(b[starts[p] : starts[p] + len(rows[PACKED.index(p)]), i * RANK : (i + 1) * RANK].clone())
                for i, p in enumerate(parts)
            )

        def forward(self, x: Tensor) -> Tensor:
            outputs = []
            for name, weight in zip(PACKED, rows, strict=True):
                y = x @ weight.detach().T
                if name in parts:
                    own = parts.index(name)
                    y = y + ALPHA / RANK * (x @ self.a[own].T @ self.b[own].T)
                outputs.append(y)
            return torch.cat(outputs, -1)

    return Separate()


@given(st.sets(st.sampled_from(PACKED), min_size=1), st.booleans())
def test_parts_of_w_pack_train_like_three_projections(chosen: set[str], with_mlp: bool) -> None:
    """Five steps of AdamW with weight decay. In float64: 1e-9 is far below any real difference."""
    parts = [name for name in PACKED if name in chosen]
    lm = model(num_hidden_layers=1)
    adapted = add_lora(lm, RANK, ALPHA, targets=[*parts, *(["up_proj"] if with_mlp else [])])
    fill(adapted)
    ours = lm.model.layers[0].self_attn.W_pack
    a, b = ours.lora_A["default"].weight, ours.lora_B["default"].weight
    theirs = separate(ours.base_layer, lm.model.layers[0].self_attn.spec, a.detach(), b.detach(), parts)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1, weight_decay=0.1) for m in (ours, theirs)]
    for _ in range(5):
        x = torch.randn(7, lm.config.hidden_size, dtype=torch.float64)
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).sin().sum().backward()
            optimizer.step()
    torch.testing.assert_close(a, torch.cat(list(theirs.a)), atol=1e-9, rtol=0)
    torch.testing.assert_close(b.abs().sum(), sum(block.abs().sum() for block in theirs.b), atol=1e-8, rtol=0)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-8, rtol=0)
    others = [module for name, module in adapted.named_modules() if name.endswith("up_proj.lora_A.default")]
    assert [m.out_features for m in others] == [RANK] * with_mlp


def by_engine(folder: Path, prompt: Tensor) -> Tensor:
    """The last token's logits."""
    serving = InferenceModel(model(), 64)
    AdapterSlots(serving, 1, 3 * RANK).write(1, read_adapter(folder, serving.config))
    cache = PagedCache(serving.config, 1, 1, torch.float64, "cpu")
    with torch.no_grad():
        step = prefill_step([Chunk(0, [0], 0, prompt[0].tolist(), 1)], cache, torch.device("cpu"))
        logits: Tensor = serving(step, cache)
    return logits[0]


@pytest.mark.parametrize("targets", ["all", "q_proj, v_proj", "q_proj,k_proj,v_proj,o_proj,mlp", "W_pack"])
def test_a_saved_adapter_loads_in_peft_and_in_the_engine(targets: str, tmp_path: Path) -> None:
    """The same logits, 1e-9 in float64 (adapters are stored in float32, as PEFT keeps them)."""
    adapted = add_lora(model(), RANK, ALPHA, targets=targets)
    fill(adapted)
    adapted.float().double()
    adapted.save_pretrained(tmp_path)
    (prompt,) = ids(11)
    with torch.no_grad():
        wanted = adapted.eval()(prompt).logits[0, -1]
        assert not torch.allclose(wanted, model()(prompt).logits[0, -1], rtol=1e-2)
        loaded = PeftModel.from_pretrained(model(), tmp_path).eval()
        torch.testing.assert_close(loaded(prompt).logits[0, -1], wanted, atol=1e-9, rtol=0)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(prompt).logits[0, -1], wanted, atol=1e-9, rtol=0)
    torch.testing.assert_close(by_engine(tmp_path, prompt), wanted, atol=1e-9, rtol=0)


def test_one_rank_and_one_scale_suffice(tmp_path: Path) -> None:
    """vLLM reads r and lora_alpha and no patterns: no matrix is larger than r, and the scale holds for all."""
    config = lora_config(RANK, ALPHA, targets="q_proj,k_proj,v_proj,mlp")
    assert (config.r, config.lora_alpha) == (3 * RANK, 3 * ALPHA)
    assert config.rank_pattern == {"gate_proj": RANK, "up_proj": RANK, "down_proj": RANK}
    for name, rank in config.rank_pattern.items():
        assert config.alpha_pattern[name] / rank == config.lora_alpha / config.r
    plain = lora_config(RANK, ALPHA, targets="all")
    assert (plain.r, plain.lora_alpha, plain.rank_pattern) == (RANK, ALPHA, {})


def train(folder: Path, steps: int, resume: str | None = None) -> Trainer:
    torch.manual_seed(1)
    adapted = add_lora(model().float(), RANK, ALPHA, targets="q_proj,v_proj", train_convolution=True)
    tokens = torch.randint(3, VOCAB, (12, 9), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        str(folder), max_steps=steps, save_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
        report_to=[], disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = Trainer(adapted, arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_trained_filters_are_saved_loaded_and_resumed(tmp_path: Path) -> None:
    trained = train(tmp_path / "a", 6).model
    base = model().float()
    fresh = dict(base.named_parameters())
    filters = [name for name in fresh if name.endswith(("conv_k", "conv_v"))]
    moved = trained.get_base_model().state_dict()
    assert len(filters) == 8
    assert all(not torch.equal(moved[name], fresh[name]) for name in filters)
    assert torch.equal(moved["lm_head.weight"], base.lm_head.weight)
    (prompt,) = ids(11)
    checkpoint = tmp_path / "a" / "checkpoint-6"
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(base, checkpoint).eval()
        assert torch.equal(loaded(prompt).logits, trained.eval()(prompt).logits)
    resumed = train(tmp_path / "a", 6, str(tmp_path / "a" / "checkpoint-3")).model
    for one, other in zip(resumed.parameters(), trained.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(CheckpointError, match="conv_k: trained filters are not served: merge them"):
        read_adapter(checkpoint, base.config)


def test_filters_of_a_16_bit_model_train_in_float32(tmp_path: Path) -> None:
    adapted = add_lora(model().bfloat16(), RANK, ALPHA, train_convolution=True)
    trainable = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    adapted.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert len(stored) == len(trainable)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"


def masks(adapted: PeftModel) -> dict[str, Tensor]:
    return {name: module.outside for name, module in adapted.named_modules() if isinstance(module, BlockLinear)}


@pytest.mark.parametrize("with_filters", [True, False])
@pytest.mark.parametrize("targets", ["q_proj,v_proj", "k_proj,mlp", "q_proj,k_proj,v_proj", "all", "mlp"])
def test_an_adapter_to_go_on_with_trains_what_it_trained(targets: str, with_filters: bool, tmp_path: Path) -> None:
    first = add_lora(model().bfloat16(), RANK, ALPHA, targets=targets, train_convolution=with_filters)
    fill(first)
    first.save_pretrained(str(tmp_path / "a"))
    second = load_adapter(model().bfloat16(), tmp_path / "a", trainable=True)
    one, other = ({n: p for n, p in m.named_parameters() if p.requires_grad} for m in (first, second))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)  # the filters are not rounded to 16 bits
    assert masks(second).keys() == masks(first).keys()
    assert bool(masks(first)) == ("_proj" in targets)
    assert all(torch.equal(mask, masks(second)[name]) for name, mask in masks(first).items())
    second.save_pretrained(str(tmp_path / "b"))
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert before.keys() == after.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "q_porj"}, "LoRA target 'q_porj': did you mean q_proj"),
        ({"targets": "lm_head"}, "LoRA target 'lm_head': give some of q_proj, k_proj"),
        ({"targets": "all,q_proj"}, "W_pack holds q_proj: give the one or the other"),
        ({"targets": []}, "no LoRA target"),
        ({"rank": 0}, "rank=0"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
    ],
)
def test_impossible_adapters_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        add_lora(model(), **{"rank": RANK, "alpha": ALPHA} | changes)
