"""vLLM's OpenAI server with the model that ships, asked by the OpenAI client."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from peft import LoraConfig, PeftModel, get_peft_model

from ascend_m1 import BaichuanM1ForCausalLM

from .server import serving

MODEL = Path(__file__).parents[2] / "ascend_m1/checkpoints/m1_icd10"
QUESTION: list[Any] = [{"role": "user", "content": "What does ICD-10-CM code J45 mean?"}]
PROMPTS = [[73, 500, 501, 502, 74], list(range(100, 190)), [900]]  # shorter and longer than the window of 32
ADAPTED = ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]


@lru_cache
def own_model() -> BaichuanM1ForCausalLM:
    return BaichuanM1ForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT folder of the project's own model, every linear layer adapted, random and large enough to matter."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    base = BaichuanM1ForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=ADAPTED, init_lora_weights=False))
    adapted.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def client(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    options = ("--served-model-name", "m1", "--dtype", "float32", "--enable-lora", "--lora-modules", f"a={adapter}")
    with serving(MODEL, tmp_path_factory.mktemp("server") / "log", *options) as address:
        yield OpenAI(base_url=address, api_key="none")


def test_chat(client: OpenAI) -> None:
    response = client.chat.completions.create(model="m1", messages=QUESTION, temperature=0)
    assert response.choices[0].message.content == "Asthma"
    assert response.choices[0].finish_reason == "stop"


def test_streaming(client: OpenAI) -> None:
    stream = client.chat.completions.create(model="m1", messages=QUESTION, temperature=0, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == "Asthma"
    assert len([piece for piece in pieces if piece]) > 1


@torch.no_grad()
def test_logprobs(client: OpenAI) -> None:
    prompt = PROMPTS[1]
    response = client.completions.create(
        model="m1", prompt=prompt, max_tokens=8, temperature=0, logprobs=1, extra_body={"return_token_ids": True}
    )
    choice: Any = response.choices[0]
    tokens = torch.tensor(choice.token_ids)
    logits = own_model()(torch.cat([torch.tensor(prompt), tokens])[None]).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, tokens[:, None]).flatten().tolist()
    assert choice.logprobs.token_logprobs == pytest.approx(expected, abs=1e-4)  # float32 in other orders, logits to 30


def test_two_choices(client: OpenAI) -> None:
    response = client.chat.completions.create(model="m1", messages=QUESTION, n=2, temperature=0.1, logprobs=True)
    assert [choice.message.content for choice in response.choices] == ["Asthma", "Asthma"]
    likely = [sum(token.logprob for token in choice.logprobs.content) for choice in response.choices if choice.logprobs]
    assert all(math.exp(value) > 0.9 for value in likely)


def test_json_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"chapter": {"enum": ["J", "K"]}, "billable": {"type": "boolean"}},
        "required": ["chapter", "billable"],
        "additionalProperties": False,
    }
    response = client.chat.completions.create(
        model="m1",
        messages=QUESTION,
        temperature=0,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "code", "schema": schema}},
    )
    answer = json.loads(response.choices[0].message.content or "")
    assert set(answer) == {"chapter", "billable"}
    assert answer["chapter"] in ("J", "K")
    assert isinstance(answer["billable"], bool)


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def test_an_adapter_equals_the_merged_model(client: OpenAI, adapter: Path) -> None:
    base = BaichuanM1ForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().eval()
    differ = 0
    for prompt in PROMPTS:
        answers = {}
        for name in ("m1", "a"):
            response = client.completions.create(
                model=name,
                prompt=prompt,
                max_tokens=16,
                temperature=0,
                extra_body={"return_token_ids": True, "ignore_eos": True},
            )
            choice: Any = response.choices[0]
            answers[name] = list(choice.token_ids)
        assert answers["a"] == greedy(merged, prompt, 16)
        assert answers["m1"] == greedy(own_model(), prompt, 16)
        differ += answers["a"] != answers["m1"]
    assert differ == len(PROMPTS)  # the adapter does something
