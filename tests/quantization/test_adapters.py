"""LoRA adapters over quantised weights: W is what the numbers stand for, and B A beside it stays as it is."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.adapters import read_adapter
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.inference import InferenceModel
from ascend_m1.quantization.read import quantised_parts
from ascend_m1.quantization.scheme import Scheme
from ascend_m1.quantization.write import quantise_checkpoint
from ascend_m1_serve.engine.core import EngineOptions, make_core
from ascend_m1_serve.protocol import Event, Sampling

from ..serve.engine.run import core_of, run_all, tokens
from .test_checkpoint import meant, silent

PROMPTS = [list(range(100, 190)), [73, 500, 501, 502, 74], [900]]
SAMPLING = Sampling(max_tokens=12, ignore_eos=True, logprobs=3)
RANK, ALPHA = 4, 8
TARGETS = ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_adapter(folder: Path, seed: int) -> Path:
    """A random one, large enough to change what is said."""
    torch.manual_seed(seed)
    options = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights=False)
    model = get_peft_model(BaichuanM1ForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32), options)
    model.save_pretrained(folder)
    return folder


def merged(model: BaichuanM1ForCausalLM, adapter: Path | None) -> list[list[Event]]:
    """The plain model with B A added to its weights, by hand."""
    if adapter is not None:
        stored, state = load_file(adapter / "adapter_model.safetensors"), model.state_dict()
        for name in [name for name in stored if name.endswith("lora_A.weight")]:
            b = stored[name.replace("lora_A", "lora_B")]
            target = name.removeprefix("base_model.model.").replace(".lora_A", "")
            state[target] += ALPHA / RANK * b @ stored[name]
    core = core_of(model, 256)
    return run_all(core, [core.add(ids, SAMPLING) for ids in PROMPTS])


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, 64)], ids=str)
@torch.no_grad()
def test_mixed_in_one_batch_they_equal_merged_weights(scheme: Scheme, tmp_path: Path) -> None:
    """In float32, where only the order of sums differs."""
    folder = tmp_path / "model"
    quantise_checkpoint(EMBEDDED, folder, scheme, silent)
    adapters = [save_adapter(tmp_path / str(seed), seed) for seed in (1, 2)]
    config = BaichuanM1Config.from_pretrained(folder)
    parts = quantised_parts(folder, config, torch.device("cpu"), torch.float32)
    core = make_core(InferenceModel(parts, 256), EngineOptions(256, adapters=2, adapter_rank=8))
    assert core.slots is not None
    for slot, path in enumerate(adapters, start=1):
        core.slots.write(slot, read_adapter(path, config))
    asked = [core.add(ids, SAMPLING, slot=slot) for slot in (0, 1, 2) for ids in PROMPTS]
    ours = run_all(core, asked)
    theirs = [events for path in (None, *adapters) for events in merged(meant(folder, scheme), path)]
    said = [tokens(events) for events in ours]
    assert said == [tokens(events) for events in theirs]
    assert len({*map(tuple, said)}) == len(said), "an adapter changes nothing"
    for a, b in zip(chain.from_iterable(ours), chain.from_iterable(theirs), strict=True):
        assert [x.logprob for x in a.logprobs[0]] == pytest.approx([x.logprob for x in b.logprobs[0]], abs=1e-4)
