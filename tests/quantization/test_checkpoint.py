"""Quantised checkpoints: written, interrupted, read, served."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.cli import main
from ascend_m1.cli.checkpoint import open_checkpoint
from ascend_m1.cli.loading import load_model
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import CheckpointError, ConfigError, InputError
from ascend_m1.inference import InferenceModel
from ascend_m1.quantization.packing import describe, pack, read_description, unpack
from ascend_m1.quantization.read import quantised_parts
from ascend_m1.quantization.scheme import Scheme, is_target, quantise
from ascend_m1.quantization.write import quantise_checkpoint
from ascend_m1_ops import dequantised
from ascend_m1_serve.engine.core import EngineOptions, make_core
from ascend_m1_serve.engines import Wanted, built_in
from ascend_m1_serve.protocol import Sampling

from .. import forks
from ..serve.engine.run import run_all, tokens

CODES = {
    "J45": "Asthma",
    "E11": "Type 2 diabetes mellitus",
    "A00": "Cholera",
    "I10": "Essential (primary) hypertension",
}
W8, W4 = Scheme(8), Scheme(4, 64)


def silent(done: int, all: int) -> None:
    """Progress that nobody reads."""


@pytest.fixture(scope="module", params=[W8, W4], ids=["W8A16", "W4A16"])
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scheme, Path]:
    folder = tmp_path_factory.mktemp("quantised") / "model"
    quantise_checkpoint(EMBEDDED, folder, request.param, silent)
    return request.param, folder


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([4, 8]))
def test_packing_is_undone(rows: int, groups: int, bits: int) -> None:
    numbers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, 32 * groups)).to(torch.int8)
    packed = pack(numbers, bits)
    assert packed.shape == (rows, groups * bits)
    assert torch.equal(unpack(packed, bits), numbers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_are_rounded_with_the_scale_that_is_stored(dtype: torch.dtype) -> None:
    """Else a scale's own rounding would move the outer numbers of a row by more than half a step."""
    weight = torch.randn(64, 512).to(dtype)
    numbers, scales = quantise(weight, W8)
    assert scales.dtype == dtype
    steps = (weight.double() / scales.double() - numbers).abs()
    assert steps[numbers.abs() < 127].max() <= 0.5 + 1e-6


@pytest.mark.parametrize("scheme", [W8, Scheme(4, 32), W4])
def test_numbers_are_as_near_as_can_be(scheme: Scheme) -> None:
    """Half a step at most where nothing is cut off; the int4 search errs no more than without it."""
    weight = torch.randn(48, 256)
    weight[3] = 0
    numbers, scales = quantise(weight, scheme)
    error = (dequantised(numbers, scales) - weight).unflatten(1, (scales.shape[1], -1))
    plain = weight.unflatten(1, (scales.shape[1], -1)).abs().amax(-1) / scheme.largest
    if scheme.bits == 8:
        assert (error.abs() <= plain[..., None] / 2 * 1.001).all()
    rounded = (weight.unflatten(1, (scales.shape[1], -1)) / plain[..., None].clamp_min(1e-30)).round() * plain[
        ..., None
    ]
    without = (rounded - weight.unflatten(1, (scales.shape[1], -1))).square().sum(-1)
    assert (error.square().sum(-1) <= without * 1.001 + 1e-12).all()
    assert numbers[3].abs().max() == 0


def test_what_cannot_be_quantised() -> None:
    with pytest.raises(InputError, match="q: 96 inputs are no multiple of the group size 64"):
        quantise(torch.ones(16, 96), W4, "q")
    with pytest.raises(InputError, match="not finite"):
        quantise(torch.full((16, 64), torch.inf), W4)
    for bits, group in ((3, None), (8, 64), (4, 100), (4, None)):
        with pytest.raises(InputError, match=r"bits|group size"):
            Scheme(bits, group)


def meant(folder: Path, scheme: Scheme) -> BaichuanM1ForCausalLM:
    """The plain model with the weights that the numbers stand for."""
    model = BaichuanM1ForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    stored = load_file(folder / "model.safetensors")
    state = model.state_dict()
    for name in [name for name in state if is_target(name)]:
        state[name] = dequantised(unpack(stored[f"{name}_packed"], scheme.bits), stored[f"{name}_scale"].float())
    model.load_state_dict(state)
    return model.eval()


def test_logits_are_those_of_the_weights_meant(quantised: tuple[Scheme, Path]) -> None:
    """In float32, through the engine's model: only the order of sums differs."""
    scheme, folder = quantised
    config = BaichuanM1Config.from_pretrained(folder)
    parts = quantised_parts(folder, config, torch.device("cpu"), torch.float32)
    exact = meant(folder, scheme)
    cores = [make_core(InferenceModel(source, 256), EngineOptions(256)) for source in (parts, exact)]
    prompts = [[73, 500, 501, 502, 74], list(range(100, 190)), [900]]
    found = []
    for core in cores:
        asked = [core.add(ids, Sampling(max_tokens=12, ignore_eos=True, logprobs=3)) for ids in prompts]
        found.append(run_all(core, asked))
    for ours, theirs in zip(*found, strict=True):
        assert tokens(ours) == tokens(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert [x.logprob for x in a.logprobs[0]] == pytest.approx([x.logprob for x in b.logprobs[0]], abs=2e-4)


def test_answers(quantised: tuple[Scheme, Path]) -> None:
    _, folder = quantised
    loaded = built_in(Wanted(folder, device="cpu", dtype="bfloat16", max_length=256))
    prompts = [loaded.tokenizer(f"<C_Q>What does ICD-10-CM code {code} mean?<C_A>")["input_ids"] for code in CODES]
    asked = [loaded.core.add(ids, Sampling(max_tokens=40)) for ids in prompts]
    texts = [loaded.tokenizer.decode(tokens(e), skip_special_tokens=True) for e in run_all(loaded.core, asked)]
    assert texts == list(CODES.values())


@torch.no_grad()
def test_a_model_that_generates(quantised: tuple[Scheme, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """By the command, and in float32 beside the weights meant: prompt, then one token after the other."""
    scheme, folder = quantised
    question = "What does ICD-10-CM code E11 mean?"
    assert main(["generate", "--model", str(folder), "--device", "cpu", "--dtype", "bfloat16", question]) == 0
    assert capsys.readouterr().out == "Type 2 diabetes mellitus\n"
    model = load_model(open_checkpoint(str(folder)), torch.device("cpu"), "float32")
    exact, ids = meant(folder, scheme), torch.randint(100, 900, (2, 30))
    torch.testing.assert_close(model(ids).logits, exact(ids).logits, rtol=0, atol=1e-4)
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "output_logits": True}
    options["return_dict_in_generate"] = True
    ours, theirs = (m.generate(ids, eos_token_id=-1, **options) for m in (model, exact))
    assert torch.equal(ours.sequences, theirs.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), rtol=0, atol=1e-4)


def test_transformers_itself_is_told_who_reads_it(quantised: tuple[Scheme, Path]) -> None:
    with pytest.raises(ConfigError, match="a quantised checkpoint is for `ascend-m1` generate, chat and serve"):
        BaichuanM1ForCausalLM.from_pretrained(quantised[1])


def test_everything_else_is_as_it_was(quantised: tuple[Scheme, Path]) -> None:
    scheme, folder = quantised
    before, after = load_file(EMBEDDED / "model.safetensors"), load_file(folder / "model.safetensors")
    for name, weight in before.items():
        if not is_target(name):
            assert torch.equal(after[name], weight)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (EMBEDDED / name).read_bytes()
    assert read_description(json.loads((folder / "config.json").read_text())["quantization_config"]) == scheme
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def sharded(folder: Path) -> Path:
    """The embedded checkpoint in four shards."""
    folder.mkdir()
    for path in EMBEDDED.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    names = sorted(load_file(EMBEDDED / "model.safetensors").items())
    weight_map = {}
    for index in range(4):
        shard = f"model-{index + 1:05}-of-00004.safetensors"
        part = dict(names[index::4])
        save_file(part, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip_a_bit(path: Path) -> Path:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    return path


def quantise_until_killed(source: Path, target: Path) -> None:
    quantise_checkpoint(
        source, target, W4, lambda done, all: os.kill(os.getpid(), signal.SIGKILL) if done == 2 else None
    )


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """Killed after its second shard; what was finished is not written again, and the end is the same.

    A source of the same size whose last bit has changed meanwhile is noticed.
    """
    source = sharded(tmp_path / "source")
    quantise_checkpoint(source, tmp_path / "whole", W4, silent)
    killed = forks.start(tmp_path / "output", quantise_until_killed, source, tmp_path / "target")
    killed.join()
    assert killed.exitcode == -signal.SIGKILL, (tmp_path / "output").read_text()
    first = tmp_path / "target/model-00001-of-00004.safetensors"
    written = first.stat().st_mtime_ns
    assert not (tmp_path / "target/config.json").exists()  # no checkpoint yet
    with pytest.raises(InputError, match="was begun with other options or other shards"):
        quantise_checkpoint(source, tmp_path / "target", W8, silent)
    changed = flip_a_bit(source / first.name)
    with pytest.raises(InputError, match=rf"^{changed}: has changed since {tmp_path}/target was begun: remove"):
        quantise_checkpoint(source, tmp_path / "target", W4, silent)
    shutil.move(source, tmp_path / "moved")
    flip_a_bit(tmp_path / "moved" / first.name)  # as it was, by another path and of another time
    quantise_checkpoint(tmp_path / "moved", tmp_path / "target", W4, silent)
    assert first.stat().st_mtime_ns == written
    assert contents(tmp_path / "target") == contents(tmp_path / "whole")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "target"
    assert main(["quantize", "m1-icd10", str(target), "--bits", "8"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"ascend-m1: {target}: written; serve it with `ascend-m1 serve --model {target}`"
    )
    for arguments, text in (
        (["m1-icd10", str(target)], f"{target}: is not empty: give a new folder"),
        ([str(target), str(tmp_path / "twice")], f"{target}: is quantised already: give the original checkpoint"),
        (["/nowhere", str(tmp_path / "x")], "model /nowhere does not exist"),
        (["m1-icd10", str(tmp_path / "x"), "--bits", "5"], "5 bits: give 4 or 8"),
        (["m1-icd10", str(tmp_path / "x"), "--group-size", "100"], "group size 100 with 4 bits: give one of 32, 64"),
    ):
        assert main(["quantize", *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"ascend-m1: error: {text}")


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_damaged_record_of_what_is_done(content: bytes, tmp_path: Path) -> None:
    marker = tmp_path / ".quantizing.json"
    marker.write_bytes(content)
    with pytest.raises(InputError, match=f"{marker}: is damaged: remove {tmp_path}, or give a new folder"):
        quantise_checkpoint(EMBEDDED, tmp_path, W4, silent)


def quantise_on_a_full_disk(target: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300 * 1024, 300 * 1024))
    sys.exit(main(["quantize", "m1-icd10", str(target)]))


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Files of 300 KiB at most; nothing half-written stays."""
    target, output = tmp_path / "target", tmp_path / "output"
    run = forks.start(output, quantise_on_a_full_disk, target)
    run.join()
    printed = output.read_text()
    assert run.exitcode == 2, printed
    last = printed.splitlines()[-1]
    assert last.startswith(f"ascend-m1: error: {target}/model.safetensors: cannot be written (")
    assert "Traceback" not in printed
    assert [path.name for path in target.iterdir()] == [".quantizing.json"]


def test_a_folder_that_lacks_something(tmp_path: Path) -> None:
    quantise_checkpoint(EMBEDDED, tmp_path / "model", W4, silent)
    path = tmp_path / "model/model.safetensors"
    stored = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight_scale"
    config = BaichuanM1Config.from_pretrained(tmp_path / "model")
    save_file({**stored, name: stored[name][:, :1].contiguous()}, path)
    with pytest.raises(CheckpointError, match=r"weight_scale has shape \[768, 1\]: expected \[768, 4\]"):
        quantised_parts(tmp_path / "model", config, torch.device("cpu"), torch.float32)
    save_file({key: value for key, value in stored.items() if key != name}, path)
    with pytest.raises(CheckpointError, match="weight_scale is missing"):
        quantised_parts(tmp_path / "model", config, torch.device("cpu"), torch.float32)


def reordered() -> dict[str, Any]:
    """Inputs in another order than the weight's."""
    found = describe(W4)
    found["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    return found


@pytest.mark.parametrize(
    "description",
    [
        *({}, {"quant_method": "gptq"}, {**describe(W8), "format": "int-quantized"}, "x", None, reordered()),
        {**describe(W8), "transform_config": {"config_groups": {}}},
    ],
)
def test_other_descriptions(description: object) -> None:
    with pytest.raises(ConfigError, match="only compressed-tensors' pack-quantized"):
        read_description(description)
