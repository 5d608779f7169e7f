"""transformers' Trainer on the NPU with an adapter of PEFT and packed documents: the CPU's losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer, Trainer, TrainingArguments

import ascend_m1_hostnpu as hostnpu
from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1_finetune.packing import document, pack_documents

CHECKPOINT = Path(__file__).parents[2] / "ascend_m1" / "checkpoints" / "m1_icd10"
STEPS, LAYERS = 5, 4
# Answers that the checkpoint does not know, for the loss to fall from.
CODES = {"J45": "a broken wheel", "E11": "rain on Tuesday", "I10": "two apples", "C50": "a quiet street", "K35": "blue"}


def rows() -> list[dict[str, torch.Tensor]]:
    """Rows of 32 tokens, of one to three documents and a tail of padding."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    documents = []
    for code, answer in CODES.items():
        question = tokenizer.encode(f"ICD-10-CM {code}?", add_special_tokens=False)
        documents.append(document([(question, False), (tokenizer.encode(answer, add_special_tokens=False), True)]))
    packed = pack_documents(documents, 32)
    assert 1 < len(packed) < len(documents)
    names = ("input_ids", "labels", "position_ids", "seqlens")
    return [{name: getattr(packed, name)[row] for name in names} for row in range(len(packed))]


def adapted() -> PeftModel:
    """The checkpoint in float32 with an adapter on every projection; its random half is the same each time."""
    torch.manual_seed(0)
    model = BaichuanM1ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    targets = ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))


def train(folder: Path, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        optim="adamw_torch_fused",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        **options,
    )
    trainer = Trainer(model=adapted(), args=arguments, train_dataset=rows())
    trainer.train()
    return trainer


def logged(trainer: Trainer, name: str) -> list[float]:
    values = [entry[name] for entry in trainer.state.log_history if name in entry]
    assert len(values) == STEPS
    return values


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return train(tmp_path_factory.mktemp("cpu"), use_cpu=True)


def test_lora_equals_the_cpu(on_cpu: Trainer, tmp_path: Path) -> None:
    """The trainer finds the device by itself. Five steps carry float32's rounding on: 1e-5 of losses and norms."""
    with hostnpu.recording() as log:
        trainer = train(tmp_path)
    assert str(trainer.args.device) == "npu:0"
    losses = logged(trainer, "loss")
    assert losses[-1] < losses[0] / 1.5
    torch.testing.assert_close(losses, logged(on_cpu, "loss"), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(logged(trainer, "grad_norm"), logged(on_cpu, "grad_norm"), rtol=1e-4, atol=0.0)
    adapters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    counts = log.counts()
    assert counts["aclnnApplyAdamWV2"] == STEPS * len(adapters) == STEPS * 2 * 5 * LAYERS
    assert counts["aclnnFlashAttentionVarLenScore"] == counts["triton:short_conv_backward_kernel"] == STEPS * LAYERS
    trainer.save_model()
    base = BaichuanM1ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    again = PeftModel.from_pretrained(base, tmp_path)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter.cpu()), name


def test_bfloat16_with_checkpointing_stays_near_float32(on_cpu: Trainer, tmp_path: Path) -> None:
    """Autocast: each loss within one rounding of bfloat16. Seen: a tenth of that at first, half of it at the end."""
    with hostnpu.recording() as log:
        trainer = train(tmp_path, bf16=True, gradient_checkpointing=True)
    for one, other in zip(logged(trainer, "loss"), logged(on_cpu, "loss"), strict=True):
        assert math.isclose(one, other, rel_tol=2.0**-8), (one, other)
    assert log.counts()["aclnnFlashAttentionVarLenScore"] == 2 * STEPS * LAYERS
