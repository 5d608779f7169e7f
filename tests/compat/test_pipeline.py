"""transformers' text-generation pipeline on the embedded checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import ascend_m1

CHECKPOINT = Path(ascend_m1.__file__).parent / "checkpoints" / "m1_icd10"
PROMPTS = ["Cholera due to", "Fracture"]
GREEDY = {"max_new_tokens": 12, "do_sample": False}


def test_pipeline_from_a_directory_equals_generate() -> None:
    lm = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    generator = pipeline("text-generation", model=str(CHECKPOINT), dtype=torch.float32)
    for prompt in PROMPTS:
        expected = lm.generate(**tokenizer(prompt, return_tensors="pt"), **GREEDY)
        text = tokenizer.decode(expected[0], skip_special_tokens=True)
        assert generator(prompt, **GREEDY)[0]["generated_text"] == text


def test_pipeline_batches_prompts_of_different_lengths() -> None:
    lm = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    generator = pipeline("text-generation", model=lm, tokenizer=AutoTokenizer.from_pretrained(CHECKPOINT))
    together = generator(PROMPTS, batch_size=2, return_full_text=False, **GREEDY)
    for prompt, batched in zip(PROMPTS, together, strict=True):
        alone = generator(prompt, return_full_text=False, **GREEDY)
        assert batched[0]["generated_text"] == alone[0]["generated_text"]


def test_pipeline_answers_a_conversation() -> None:
    generator = pipeline("text-generation", model=str(CHECKPOINT), dtype=torch.float32)
    chat = [{"role": "user", "content": "Cholera"}]
    answer = generator(chat, **GREEDY)[0]["generated_text"]
    assert answer[:-1] == chat
    assert answer[-1]["role"] == "assistant"
