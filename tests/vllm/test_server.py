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
from openai import APIStatusError, OpenAI
from peft import LoraConfig, get_peft_model

from ascend_m1 import BaichuanM1ForCausalLM

from ..finetune.trained import COUNT, PROMPTS, TARGETS, expected, plain, train
from .server import serving

MODEL = Path(__file__).parents[2] / "ascend_m1/checkpoints/m1_icd10"
QUESTION: list[Any] = [{"role": "user", "content": "What does ICD-10-CM code J45 mean?"}]
ADAPTED = ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]


@lru_cache
def own_model() -> BaichuanM1ForCausalLM:
    return BaichuanM1ForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def save_random(folder: Path) -> Path:
    """A PEFT folder of the project's own model, every linear layer adapted, random and large enough to matter."""
    torch.manual_seed(0)
    base = BaichuanM1ForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=ADAPTED, init_lora_weights=False))
    adapted.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every matrix, random, and what ``ascend-m1 train`` makes of its words for targets."""
    folder = tmp_path_factory.mktemp("adapters")
    trained = {name: train(folder / name, f"lora_target_modules={words}") for name, words in TARGETS.items()}
    return {"random": save_random(folder / "random"), **trained}


@pytest.fixture(scope="module")
def client(adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    names = [f"{name}={folder}" for name, folder in adapters.items()]
    room = ("--enable-lora", "--max-loras", str(len(names)), "--max-lora-rank", "32")  # 16 for each of q and v
    options = ("--served-model-name", "m1", "--dtype", "float32", *room, "--lora-modules", *names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
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


def ask(client: OpenAI, model: str) -> list[list[int]]:
    """Greedy tokens for ``PROMPTS``."""
    options: Any = {"max_tokens": COUNT, "temperature": 0}
    extra = {"return_token_ids": True, "ignore_eos": True}
    answers: list[Any] = [
        client.completions.create(model=model, prompt=prompt, extra_body=extra, **options) for prompt in PROMPTS
    ]
    return [list(answer.choices[0].token_ids) for answer in answers]


@pytest.mark.parametrize("name", ["random", *TARGETS])
def test_an_adapter_equals_the_merged_model(name: str, client: OpenAI, adapters: dict[str, Path]) -> None:
    assert ask(client, name) == expected(adapters[name])


def test_without_an_adapter_nothing_changes(client: OpenAI) -> None:
    assert ask(client, "m1") == plain()


def test_trained_filters_are_refused_by_name(client: OpenAI, tmp_path: Path) -> None:
    filters = train(tmp_path / "filters", "lora_target_modules=q_proj", "train_convolution=true")
    body = {"lora_name": "filters", "lora_path": str(filters)}
    with pytest.raises(APIStatusError, match=r"self_attn\.conv_k is unsupported LoRA weight"):
        client.post("/load_lora_adapter", cast_to=object, body=body, options={"max_retries": 0})
    assert "filters" not in [model.id for model in client.models.list()]
