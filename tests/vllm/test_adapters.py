"""What the service's engine makes of vLLM's answers to an adapter, without vLLM's processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ascend_m1 import BaichuanM1Config
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import CheckpointError, InputError
from ascend_m1_serve.errors import EngineError
from ascend_m1_serve.vllm_engine import Recorder, VllmEngine

from ..serve.api.adapters import save


def engine_of(add_lora: Any) -> VllmEngine:
    """Room for one adapter of rank 4."""
    model = SimpleNamespace(hf_config=BaichuanM1Config.from_pretrained(EMBEDDED))
    lora = SimpleNamespace(max_loras=1, max_lora_rank=4)
    inner: Any = SimpleNamespace(
        vllm_config=SimpleNamespace(model_config=model, lora_config=lora), errored=False, add_lora=add_lora
    )
    return VllmEngine(inner, Recorder(), SimpleNamespace(vocab_size=331), tokenizer=None)  # type: ignore[arg-type]


def test_an_adapter_that_a_worker_fails_with_gives_its_place_back(tmp_path: Path) -> None:
    """Which is no fault of the request: what would be is looked at before."""
    folder, asked = str(save(tmp_path / "a")), []

    async def add_lora(request: Any) -> bool:
        asked.append((request.lora_name, request.lora_int_id))
        if len(asked) == 1:
            raise RuntimeError("Call to add_lora method failed:\n no memory")
        return True

    async def scenario() -> None:
        engine = engine_of(add_lora)
        with pytest.raises(EngineError, match="vLLM could not load adapter 'a': Call to add_lora method failed: no"):
            await engine.add_adapter("a", folder)
        with pytest.raises(CheckpointError, match="is not a directory"):
            await engine.add_adapter("a", str(tmp_path / "missing"))
        with pytest.raises(InputError, match="the adapter has rank 5: there is room for 4: raise --max-adapter-rank"):
            await engine.add_adapter("a", str(save(tmp_path / "b", r=5)))
        assert engine.adapters() == []
        await engine.add_adapter("a", folder)
        assert engine.adapters() == ["a"]

    asyncio.run(scenario())
    assert asked == [("adapter 1", 1), ("adapter 4", 4)]
