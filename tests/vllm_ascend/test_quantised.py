"""ModelSlim's checkpoints through vllm-ascend's own quantised products on the host NPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ascend_m1 import BaichuanM1ForCausalLM

from ..vllm.quantised import ANSWERS, MODEL, questions
from .engine import Job, answer
from .quantised import write


# The model is sure of these answers, so that rounding hardly moves their logprobs: by 7e-5 where activations are int8,
# too, each rounded to a step of a 254th of its token's range, and by 5e-6 where it is float16's rounding alone. The
# vendor's product takes no float16 scales beside int8 activations.
@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"), [("W8A8_DYNAMIC", "bfloat16", 1e-3), ("W8A16", "float16", 1e-4)]
)
@torch.no_grad()
def test_the_answers_are_those_of_the_weights_meant(kind: str, dtype: str, tolerance: float, tmp_path: Path) -> None:
    meant = BaichuanM1ForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    meant.load_state_dict(write(MODEL, tmp_path / "model", kind, getattr(torch, dtype)))
    options = {"dtype": dtype, "gpu_memory_utilization": 0.3, "skip_tokenizer_init": False}
    job = Job(str(tmp_path / "model"), questions(), engine=options)
    job.sampling.update(logprobs=1, detokenize=True, ignore_eos=False)
    for wanted, prompt, sample in zip(ANSWERS.values(), job.prompts, answer(job, tmp_path)["rounds"][0], strict=True):
        tokens = torch.tensor(sample["tokens"])
        logits = meant(torch.cat([torch.tensor(prompt), tokens])[None]).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, tokens[:, None]).flatten()
        print(kind, (torch.tensor(sample["logprobs"]) - expected).abs().max().item())
        assert sample["logprobs"] == pytest.approx(expected.tolist(), abs=tolerance)
        assert logits.argmax(-1).tolist() == sample["tokens"]
        assert sample["text"] == wanted
