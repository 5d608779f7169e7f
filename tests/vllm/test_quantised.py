"""Quantised checkpoints, by vLLM's own kernels for CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.quantization.scheme import Scheme
from ascend_m1.quantization.write import quantise_checkpoint

from ..model.golden import ROOT
from .engine import Job
from .forks import run, run_module
from .quantised import ANSWERS, MODEL, questions, write
from .server import SERVER

# Where the processor has AMX, vLLM's kernel of int8 activations takes 16-bit rows only.
INT8_DTYPE = "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"


# The kernel of int8 activations rounds each of them to a step of a 254th of its row's range, which moves these logprobs
# by up to 0.12; whole numbers of 4 bits are exact here, and bfloat16 moves the logprobs by up to 0.03.
@pytest.mark.parametrize(
    ("bits", "activations", "dtype", "tolerance"), [(8, True, INT8_DTYPE, 0.25), (4, False, "bfloat16", 0.1)]
)
@torch.no_grad()
def test_the_answers_are_those_of_the_weights_meant(
    bits: int, activations: bool, dtype: str, tolerance: float, tmp_path: Path
) -> None:
    meant = BaichuanM1ForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    meant.load_state_dict(write(MODEL, tmp_path / "model", bits, activations))
    job = Job(str(tmp_path / "model"), questions(), engine={"dtype": dtype, "skip_tokenizer_init": False})
    job.sampling.update(logprobs=1, detokenize=True, ignore_eos=False)
    for answer, prompt, sample in zip(ANSWERS.values(), job.prompts, run(job, tmp_path)["rounds"][0], strict=True):
        tokens = torch.tensor(sample["tokens"])
        logits = meant(torch.cat([torch.tensor(prompt), tokens])[None]).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == sample["tokens"]
        expected = logits.log_softmax(-1).gather(1, tokens[:, None]).flatten()
        assert sample["logprobs"] == pytest.approx(expected.tolist(), abs=tolerance)
        assert sample["text"] == answer


@torch.no_grad()
def test_a_folder_of_our_command(tmp_path: Path) -> None:
    """vLLM keeps its scales in its own dtype, which is bfloat16 here, as the activations."""
    quantise_checkpoint(MODEL, tmp_path / "model", Scheme(4, 128), lambda done, all: None)
    job = Job(str(tmp_path / "model"), questions(), engine={"dtype": "bfloat16", "skip_tokenizer_init": False})
    job.sampling.update(detokenize=True, ignore_eos=False)
    assert [sample["text"] for sample in run(job, tmp_path)["rounds"][0]] == list(ANSWERS.values())


def test_eight_bits_beside_wide_activations_have_no_kernel_here(tmp_path: Path) -> None:
    quantise_checkpoint(MODEL, tmp_path / "model", Scheme(8), lambda done, all: None)
    with pytest.raises(AssertionError, match=r"Quant type \(uint8b128\) not supported by CPUWNA16"):
        run(Job(str(tmp_path / "model"), [[1]], engine={"dtype": "bfloat16"}), tmp_path)


def test_bitsandbytes_is_not_part_of_this_vllm(tmp_path: Path) -> None:
    options = ["--model", str(ROOT / "hybrid"), "--skip-tokenizer-init", "--quantization", "bitsandbytes"]
    status, output = run_module(SERVER, options, tmp_path)
    assert status != 0
    assert "Unknown quantization method: bitsandbytes" in output
