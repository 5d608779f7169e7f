"""The service's engine on the host NPU: golden tokens, the CPU's answers over HTTP, and what a step launches."""

from __future__ import annotations

import httpx
import pytest
import torch

import ascend_m1_hostnpu as host
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.inference import InferenceModel
from ascend_m1_serve.engine.core import EngineOptions, make_core
from ascend_m1_serve.engines import BuiltIn, Wanted, built_in
from ascend_m1_serve.protocol import Sampling

from ..model.golden import load_prompts
from ..serve.api.running import running
from ..serve.engine.run import greedy, run_all
from .golden import load
from .test_decode import published

CODES = {"J45": "Asthma", "E11": "Type 2 diabetes mellitus", "A00": "Cholera"}


@pytest.mark.parametrize(("case", "graph"), [("hybrid", "eager"), ("page-ratio", "npugraph")])
def test_golden(case: str, graph: str) -> None:
    """Chunks of prompts between decode steps; the second time the prefixes are there."""
    prompts = load_prompts(case)
    core = make_core(InferenceModel(load(case), 512), EngineOptions(512, max_sequences=4, chunk=64, graph=graph))
    for _ in range(2):
        tokens = greedy(core, [ids.tolist() for ids, _, _ in prompts], 24)
        assert tokens == [wanted.tolist() for _, _, wanted in prompts]


def embedded(device: str) -> BuiltIn:
    return built_in(Wanted(EMBEDDED, device=device, dtype="float16", max_length=256, max_sequences=4))


def test_answers_over_http_are_the_cpus() -> None:
    """Together, in float16, greedy and sampled by a seed; decode steps are captured graphs."""
    answers = []
    for device in ("cpu", "npu:0"):
        loaded = embedded(device)
        if device != "cpu":
            assert {decoder.graph for decoder in loaded.core.runner.decoder.decoders} == {"npugraph"}
        with running(loaded) as service, httpx.Client(base_url=service.url, timeout=120) as client:
            prompts = [f"<C_Q>What does ICD-10-CM code {code} mean?<C_A>" for code in CODES]
            ask = {"prompt": prompts, "max_tokens": 24}
            found = client.post("/v1/completions", json=ask).json()["choices"]
            assert [choice["text"] for choice in found] == list(CODES.values())
            sampled = client.post("/v1/completions", json={**ask, "temperature": 0.7, "seed": 5}).json()["choices"]
            answers.append([choice["text"] for choice in sampled])
            assert client.get("/stats").json()["device"] == device.split(":")[0]
    assert answers[0] == answers[1]


def test_a_step_launches_what_a_captured_graph_does() -> None:
    """Nine a layer and six besides (tests/npu/test_decode.py); outside the graph the engine launches one copy."""
    core = make_core(InferenceModel(published(2), 256), EngineOptions(256, max_sequences=2, graph="npugraph"))
    requests = [core.add(list(range(40)), Sampling(max_tokens=8, ignore_eos=True)) for _ in range(2)]
    for _ in range(4):
        core.step()  # prompts, then the graph
    with host.recording() as log:
        core.step()
    assert len(log.kernels) == 2 * 9 + 6
    copies = [launch.name for launch in log.launches if not launch.captured]
    assert copies == ["memcpy"]
    run_all(core, requests)
    assert torch.npu.is_available()
