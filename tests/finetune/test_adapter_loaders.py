"""What ``ascend-m1 train`` writes answers alike wherever it is loaded: PEFT, transformers, the engine, ``generate``.

The same for vLLM is in tests/vllm/test_server.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from ascend_m1.adapters import merge_adapter, read_adapter
from ascend_m1.cli import main
from ascend_m1.cli.checkpoint import open_checkpoint
from ascend_m1.cli.options import EMBEDDED
from ascend_m1_serve import logs
from ascend_m1_serve.text import token_text

from ..serve.test_command import started
from .trained import COUNT, PROMPTS, TARGETS, base, expected, greedy, plain, train

NAMES = ["all", "roles"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained once; "filters" has the convolution's, too."""
    folder = tmp_path_factory.mktemp("adapters")
    trained = {name: train(folder / name, f"lora_target_modules={TARGETS[name]}") for name in NAMES}
    words = ("lora_target_modules=q_proj,v_proj", "train_convolution=true")
    return {**trained, "filters": train(folder / "filters", *words)}


@pytest.fixture(scope="module")
def wanted(adapters: dict[str, Path]) -> dict[str, list[list[int]]]:
    return {name: expected(folder) for name, folder in adapters.items()}


def by_peft(folder: Path) -> Any:
    return PeftModel.from_pretrained(base(), folder)


def by_peft_alone(folder: Path) -> Any:
    """It finds the base by itself."""
    return AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def by_transformers(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def into_a_model_of_transformers(folder: Path) -> Any:
    model = base()
    model.load_adapter(str(folder))
    return model


def merged_by_us(folder: Path) -> Any:
    """As generate and chat do."""
    model = base()
    merge_adapter(model, read_adapter(folder, model.config))
    return model


LOADERS = [by_peft, by_peft_alone, by_transformers, into_a_model_of_transformers, merged_by_us]
CASES = [("roles", load) for load in LOADERS]
CASES += [("all", by_transformers), ("all", merged_by_us), ("filters", by_peft), ("filters", by_transformers)]


@pytest.mark.parametrize(("name", "load"), CASES)
def test_a_loaded_adapter_equals_the_merged_model(
    name: str, load: Callable[[Path], Any], adapters: dict[str, Path], wanted: dict[str, list[list[int]]]
) -> None:
    assert greedy(load(adapters[name]).eval()) == wanted[name]


def test_the_engine_serves_them_beside_each_other(
    adapters: dict[str, Path], wanted: dict[str, list[list[int]]]
) -> None:
    """``ascend-m1 serve --adapter NAME=DIR``; PEFT's tokens, written as the server writes tokens."""
    tokenizer = open_checkpoint(str(EMBEDDED)).tokenizer
    options = [word for name in NAMES for word in ("--adapter", f"{name}={adapters[name]}")]
    with started("--dtype", "float32", *options) as (_, url, _):
        for model, answers in {**{name: wanted[name] for name in NAMES}, "m1-icd10": plain()}.items():
            body = {"model": model, "max_tokens": COUNT, "temperature": 0, "ignore_eos": True, "logprobs": 0}
            body |= {"prompt": PROMPTS, "skip_special_tokens": False}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
            told = [choice["logprobs"]["tokens"] for choice in answer.json()["choices"]]
            assert told == [[token_text(tokenizer, token)[0] for token in tokens] for tokens in answers], model


@pytest.mark.parametrize(
    "command", [["serve", "--device", "cpu", "--port", "0", "--adapter", "f={}"], ["generate", "--adapter", "{}", "x"]]
)
def test_trained_filters_are_refused_in_one_line(
    command: list[str],
    adapters: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "start_logging", lambda level: None)
    folder = adapters["filters"]
    assert main([word.format(folder) for word in command]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line == (
        f"ascend-m1: error: {folder}/adapter_model.safetensors: base_model.model.model.layers.0.self_attn.conv_k: "
        "trained filters are not served: merge them with `ascend-m1 export`"
    )
