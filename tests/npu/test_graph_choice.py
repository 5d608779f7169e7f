"""Which route decode steps take: what a product or a missing package rules out is said in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.errors import InputError
from ascend_m1.inference import InferenceModel

from ..model.golden import ROOT, load_prompts

# Prints, for each graph named, whether it gave the golden tokens and by which route, or what it was refused with.
PROGRAM = """
import json, sys
import ascend_m1_hostnpu
import torch
from ascend_m1.errors import InputError
from tests.model.paged_run import Server
from tests.npu.golden import load, load_prompts

prompts = load_prompts("hybrid")[:2]
model = load("hybrid", torch.float32, "npu")

def run(graph):
    try:
        server = Server(model, len(prompts), graph)
        tokens = server.run([ids.tolist() for ids, _, _ in prompts], 4).tokens
    except InputError as error:
        return str(error)
    return [tokens == [greedy.tolist()[:4] for _, _, greedy in prompts], server.decoder.decoders[0].graph]

results = {graph: run(None if graph == "None" else graph) for graph in sys.argv[1:]}
run(None)
print(json.dumps(results))
"""


def in_a_process(*names: str, product: str = "910B", before: str = "") -> tuple[dict[str, Any], list[str]]:
    """What the program printed, and its warnings about graphs."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "ops")])}
    environment["HOSTNPU_PRODUCT"] = product
    command = [sys.executable, "-c", before + PROGRAM, *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    said = [line for line in done.stderr.splitlines() if line.startswith("decode steps are not captured: ")]
    return json.loads(done.stdout.splitlines()[-1]), said


def test_310p_decodes_eagerly_and_says_why_once() -> None:
    results, said = in_a_process("None", "npugraph", "npugraph_ex", "cann", "inductor", product="310P")
    assert results.pop("None") == [True, "eager"]
    assert said == ["decode steps are not captured: the graph modes' documentation does not list 310P"]
    reasons = dict.fromkeys(("npugraph", "npugraph_ex", "cann"), "the graph modes' documentation does not list 310P")
    reasons["inductor"] = "it compiles for a CPU or a GPU, and the model is on an NPU"
    for graph, reason in reasons.items():
        remedy = "use 'eager', or leave the choice open"
        assert results[graph] == f"graph {graph!r} cannot be used here: {reason}: {remedy}"


def test_cann_after_npugraph_ex_says_what_to_do() -> None:
    """In this order alone; the other one is the suite's own (conftest.py)."""
    results, said = in_a_process("npugraph_ex", "cann", "npugraph")
    assert results["npugraph_ex"] == [True, "npugraph_ex"]
    assert results["npugraph"] == [True, "npugraph"]
    assert results["cann"].startswith("graph 'cann' after npugraph_ex: ")
    assert "make the first CANN graph before" in results["cann"]
    assert "use another process" in results["cann"]
    assert said == []


def test_without_triton_only_a_cann_graph_remains() -> None:
    """The kernels are composed then, which waits for the host; a CANN graph has operators of its own."""
    missing = "import sys; sys.modules['triton'] = None"
    results, said = in_a_process("None", "cann", "npugraph", "npugraph_ex", before=missing)
    assert results["None"] == [True, "eager"]
    assert results["cann"] == [True, "cann"]
    assert len(said) == 1
    assert "wait for the host: triton is not installed (on an NPU: pip install triton-ascend)" in said[0]
    for graph in ("npugraph", "npugraph_ex"):
        assert results[graph].startswith(f"graph {graph!r} cannot be used here: conv_rope_cache is composed of torch")


def test_a_real_adapter_is_refused_until_it_is_merged() -> None:
    plain = BaichuanM1ForCausalLM.from_pretrained(ROOT / "hybrid", dtype=torch.float32).eval()
    options = LoraConfig(r=4, target_modules=["W_pack", "o_proj"], init_lora_weights=False)
    adapted = get_peft_model(plain, options).eval()
    for model in (adapted, adapted.get_base_model()):
        with pytest.raises(InputError, match="merge_and_unload"):
            InferenceModel(model, 16)
    ids = load_prompts("hybrid")[3][0][None]
    with torch.no_grad():
        want = adapted(ids).logits
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, want, rtol=1e-3, atol=1e-3)
    InferenceModel(merged, 16)
