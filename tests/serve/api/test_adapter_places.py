"""Adapters that come and go while the service runs, on either engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from ascend_m1.errors import InputError

from .adapters import save
from .running import Running, embedded, running


def test_places_of_adapters(tmp_path: Path) -> None:
    """Two loads of one name at once are one; there are as many places as the server was given, each is used again."""
    folder = str(save(tmp_path / "a"))
    with running(embedded(max_adapters=2)) as service:
        engine = service.front.engine

        async def twice() -> list[Any]:
            return await asyncio.gather(*(engine.add_adapter("a", folder) for _ in range(2)), return_exceptions=True)

        first, second = service.call(twice)
        assert first is None
        assert isinstance(second, InputError)
        assert "adapter 'a' is being loaded already" in str(second)
        load(service, "b", folder, "")
        load(service, "c", folder, "adapter 'c': all 2 places are taken: unload one, or raise --max-adapters")
        before = answer(service, "a")
        assert before == answer(service, "b")
        assert before != answer(service, "m1-icd10")
        service.call(lambda: engine.remove_adapter("a"))
        save(Path(folder), seed=1)  # the same name and place, other weights
        load(service, "a", folder, "")
        assert answer(service, "a") not in (before, answer(service, "m1-icd10"))
        assert answer(service, "b") == before


def load(service: Running, name: str, folder: str, told: str) -> None:
    body = {"lora_name": name, "lora_path": folder}
    answer = httpx.post(f"{service.url}/v1/load_lora_adapter", json=body, timeout=60)
    assert (answer.status_code, told in answer.text) == (422 if told else 200, True), answer.text


def answer(service: Running, model: str) -> str:
    """To a prompt of more than a block, which the prefix cache keeps."""
    ask = {"model": model, "prompt": "What does ICD-10-CM code J45 mean? " * 12, "max_tokens": 16}
    found: str = httpx.post(f"{service.url}/v1/completions", json=ask, timeout=60).json()["choices"][0]["text"]
    return found
