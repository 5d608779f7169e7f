"""A transformers Llama generates and trains on the npu device as on the CPU: the operators that it calls are there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


def llama(attention: str = "eager") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=2,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).eval()


def generate(model: LlamaForCausalLM, **options: Any) -> torch.Tensor:
    """Two prompts, the first padded on the left."""
    torch.manual_seed(1)
    tokens, mask = torch.randint(3, 128, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    tokens[0, :4] = mask[0, :4] = 0
    device = model.device
    return model.generate(tokens.to(device), attention_mask=mask.to(device), max_new_tokens=6, **options).cpu()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.7, "no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.3, "min_new_tokens": 4, "bad_words_ids": [[5], [6, 7]], "eos_token_id": [2, 3]},
        {"cache_implementation": "static"},
    ],
    ids=["greedy", "beams", "processors", "static cache"],
)
def test_generates_as_on_the_cpu(attention: str, options: dict[str, Any]) -> None:
    model = llama(attention)
    want = generate(model, do_sample=False, **options)
    got = generate(copy.deepcopy(model).to("npu"), do_sample=False, **options)
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    "options",
    [{"top_k": 5, "temperature": 0.7}, {"top_p": 0.9, "top_k": 0}, {"min_p": 0.1, "typical_p": 0.9}, {"num_beams": 3}],
    ids=["top k", "top p", "min p", "beams"],
)
def test_samples_tokens_of_the_vocabulary(options: dict[str, Any]) -> None:
    got = generate(llama().to("npu"), do_sample=True, **options)
    assert got.shape[0] == 2
    assert ((got >= 0) & (got < 128)).all()


def losses(folder: Path, on_cpu: bool, lora: bool, **options: Any) -> list[float]:
    rows = [{"input_ids": torch.arange(i, i + 12) % 128, "labels": torch.arange(i, i + 12) % 128} for i in range(8)]
    model: Any = llama().train()
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        use_cpu=on_cpu,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("optimizer", "lora"), [("adamw_torch", True), ("adamw_torch_fused", False)])
def test_trains_as_on_the_cpu(tmp_path: Path, optimizer: str, lora: bool) -> None:
    options = {"optim": optimizer, "max_grad_norm": 0.5, "lr_scheduler_type": "cosine", "gradient_checkpointing": lora}
    want = losses(tmp_path, True, lora, **options)
    got = losses(tmp_path, False, lora, **options)
    assert len(got) == 3
    assert got == pytest.approx(want, rel=1e-5)
