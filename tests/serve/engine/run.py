"""Drives the engine's core without a thread."""

from __future__ import annotations

from collections.abc import Sequence

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.inference import InferenceModel
from ascend_m1_serve.engine.core import Core, EngineOptions, make_core
from ascend_m1_serve.engine.request import Request
from ascend_m1_serve.protocol import Event, Sampling


def core_of(model: BaichuanM1ForCausalLM, max_length: int = 512, **options: int | bool | str) -> Core:
    """An engine over a model on the CPU."""
    return make_core(InferenceModel(model, max_length), EngineOptions(max_length, **options))  # type: ignore[arg-type]


def run_all(core: Core, requests: Sequence[Request]) -> list[list[Event]]:
    """Step until nothing is left; the events of each request."""
    events: dict[int, list[Event]] = {request.number: [] for request in requests}
    while core.scheduler.busy:
        for request, event in core.step():
            events[request.number].append(event)
    return [events[request.number] for request in requests]


def tokens(events: Sequence[Event]) -> list[int]:
    return [token for event in events for token in event.tokens]


def greedy(core: Core, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """``count`` tokens after each prompt, all together."""
    requests = [core.add(list(ids), Sampling(max_tokens=count, ignore_eos=True)) for ids in prompts]
    return [tokens(events) for events in run_all(core, requests)]
