"""The golden logits and continuations on a GPU: the plain model, and the paged one that serves."""

from __future__ import annotations

import pytest
import torch

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.inference import InferenceModel
from ascend_m1_serve.engine.core import EngineOptions, make_core

from ..model.golden import CASES, ROOT, TOLERANCE, load_prompts, max_error
from ..serve.engine.run import greedy

pytestmark = pytest.mark.parametrize("case", CASES)


def on_gpu(case: str, dtype: torch.dtype = torch.float32) -> BaichuanM1ForCausalLM:
    return BaichuanM1ForCausalLM.from_pretrained(ROOT / case, dtype=dtype).eval().cuda()


@torch.no_grad()
def test_logits(case: str) -> None:
    model = on_gpu(case)
    for ids, logits, _ in load_prompts(case):
        assert max_error(model(ids[None].cuda()).logits[0].cpu(), logits) < TOLERANCE


@torch.no_grad()
def test_generate(case: str) -> None:
    model = on_gpu(case)
    for ids, _, wanted in load_prompts(case):
        out = model.generate(ids[None].cuda(), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert out[0, len(ids) :].tolist() == wanted.tolist()


@torch.no_grad()
def test_sixteen_bits_are_as_near_as_on_a_cpu(case: str) -> None:
    """Twice the CPU's distance from float64: a GPU's products add up in another order."""
    for dtype in (torch.bfloat16, torch.float16):
        gpu = on_gpu(case, dtype)
        cpu = BaichuanM1ForCausalLM.from_pretrained(ROOT / case, dtype=dtype).eval()
        errors = torch.tensor(
            [
                [max_error(model(ids[None].to(model.device)).logits[0].float().cpu(), logits) for model in (gpu, cpu)]
                for ids, logits, _ in load_prompts(case)
            ]
        )
        assert errors[:, 0].max() <= 2 * errors[:, 1].max()


@pytest.mark.parametrize("chunk", [8, 512])
def test_engine(case: str, chunk: int) -> None:
    """Continuous batching, with prefix hits the second time."""
    prompts = load_prompts(case)
    core = make_core(InferenceModel(on_gpu(case), 512), EngineOptions(512, chunk=chunk))
    for _ in range(2):
        tokens = greedy(core, [ids.tolist() for ids, _, _ in prompts], 24)
        assert tokens == [wanted.tolist() for _, _, wanted in prompts]
