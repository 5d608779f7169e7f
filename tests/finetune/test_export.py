"""``ascend-m1 export``: a merged checkpoint that answers as base and adapter do, or one line and nothing written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.cli import main
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import CheckpointError
from ascend_m1.quantization.scheme import Scheme
from ascend_m1.quantization.write import quantise_checkpoint
from ascend_m1_finetune import export as exporting
from ascend_m1_finetune.export import export
from ascend_m1_finetune.lora import add_lora
from ascend_m1_finetune.qlora import quantised_base

from .. import forks

IDS = torch.randint(3, 2000, (2, 30), generator=torch.Generator().manual_seed(1))


def base_model(folder: Path = EMBEDDED) -> BaichuanM1ForCausalLM:
    return BaichuanM1ForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(IDS).logits
    return found


def fill(adapted: Any, size: float = 0.3) -> None:
    """Weights as after a training that changed much."""
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=size)
            elif name.endswith(("conv_k", "conv_v")) and parameter.requires_grad:
                parameter.add_(0.3)
        for module in adapted.modules():
            if hasattr(module, "outside"):
                module.weight.masked_fill_(module.outside, 0)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    adapted = add_lora(base_model(), 4, 1, targets="q_proj,v_proj,mlp", train_convolution=True)
    fill(adapted)
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(str(folder))
    return folder


def assert_exported(target: Path, wanted: Tensor, plain: Tensor) -> None:
    """In float32 but for the stored weights' bfloat16, which moves logits far less than the adapter does."""
    found = logits(base_model(target))
    assert (wanted - plain).norm() > 0.2 * plain.norm()
    assert (found - wanted).norm() < 0.02 * wanted.norm()


REMOTE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
target, found = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True, torch_dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=True)
questions = ["What does ICD-10-CM code J45 mean?", "Which code means Asthma? " * 20]
chats = [[{"role": "user", "content": question}] for question in questions]
texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
batch = tokenizer(texts, return_tensors="pt", padding=True)
ids, mask = batch["input_ids"], batch["attention_mask"]
torch.save((ids, mask, model(input_ids=ids, attention_mask=mask).logits.detach()), found)
assert "ascend_m1" not in sys.modules
"""


def test_the_command(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights merged, all other files the base's; a plain process loads it with trust_remote_code."""
    target = tmp_path / "new" / "merged"
    assert main(["export", str(adapter), str(target)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["reading", "merging", "writing", f"{target}:"]
    assert lines[-1].endswith(", for the weights are rounded (refused is more than 5.00%, or than half the change)")
    assert_exported(target, logits(PeftModel.from_pretrained(base_model(), adapter)), logits(base_model()))
    for name in ("tokenizer.json", "tokenizer.model", "generation_config.json"):
        assert (target / name).read_bytes() == (EMBEDDED / name).read_bytes()
    assert not {"README.md", "loss.png", "training.json"} & {path.name for path in target.iterdir()}
    assert len({path.stat().st_mode for path in target.iterdir()}) == 1
    tokenizer = json.loads((target / "tokenizer_config.json").read_text())
    assert tokenizer.pop("auto_map")
    assert tokenizer == json.loads((EMBEDDED / "tokenizer_config.json").read_text())
    config = json.loads((target / "config.json").read_text())
    remote = config.pop("auto_map")
    assert config == json.loads((EMBEDDED / "config.json").read_text())
    stored, source = load_file(target / "model.safetensors"), load_file(EMBEDDED / "model.safetensors")
    assert {k: (v.dtype, v.shape) for k, v in stored.items()} == {k: (v.dtype, v.shape) for k, v in source.items()}
    assert [path.name for path in target.parent.iterdir()] == ["merged"]
    assert remote["AutoModelForCausalLM"] == "ascend_m1_remote.BaichuanM1ForCausalLM"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", REMOTE, target, tmp_path / "found.pt"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    ids, mask, found = torch.load(tmp_path / "found.pt")
    wanted = base_model(target)(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], atol=1e-4, rtol=0.0)  # as far as float32 goes
    assert main(["export", str(adapter), str(target)]) == 2
    assert capsys.readouterr().err == f"ascend-m1: error: {target}: is not empty: give a new folder\n"


def test_a_quantised_base_is_written_out_in_full(tmp_path: Path) -> None:
    quantise_checkpoint(EMBEDDED, tmp_path / "base", Scheme(4, 64), lambda done, all: None)
    torch.manual_seed(0)
    adapted = add_lora(quantised_base(tmp_path / "base", torch.float32), 4, 8)
    fill(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = export(tmp_path / "base", tmp_path / "adapter", tmp_path / "target", lambda step: None)
    assert merged.effect > 0.2
    assert "quantization_config" not in json.loads((tmp_path / "target/config.json").read_text())
    plain = logits(quantised_base(tmp_path / "base", torch.float32))
    assert_exported(tmp_path / "target", logits(adapted), plain)


def test_shards(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "SHARD", "2MB")
    export(EMBEDDED, adapter, tmp_path / "target", lambda step: None)
    shards = sorted(path.name for path in (tmp_path / "target").glob("*.safetensors"))
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert len(shards) > 3
    assert_exported(tmp_path / "target", logits(PeftModel.from_pretrained(base_model(), adapter)), logits(base_model()))


def export_until_killed(adapter: Path, target: Path) -> None:
    exporting.check_checkpoint = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    export(EMBEDDED, adapter, target, print)


def test_a_killed_export_leaves_no_checkpoint(adapter: Path, tmp_path: Path) -> None:
    """Killed just before the last step; the next run removes what was begun."""
    target, output = tmp_path / "target", tmp_path / "output"
    killed = forks.start(output, export_until_killed, adapter, target)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL, output.read_text()
    output.unlink()
    assert [path.name for path in tmp_path.iterdir()] == [".target.part"]
    export(EMBEDDED, adapter, target, lambda step: None)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_merge_that_loses_the_adapter_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if PEFT had merged nothing."""
    adapted = get_peft_model(base_model(), LoraConfig(r=4, target_modules=["up_proj"], task_type="CAUSAL_LM"))
    fill(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: base_model().bfloat16().eval(), raising=False)
    with pytest.raises(CheckpointError, match=r"merged, the logits differ by \d+\.\d\d% .*: nothing is written"):
        export(EMBEDDED, tmp_path / "adapter", tmp_path / "target", lambda step: None)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_that_rounding_outweighs_needs_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As after few updates: it changes the logits by less than bfloat16 does."""
    adapted = get_peft_model(base_model(), LoraConfig(r=4, target_modules=["up_proj"], task_type="CAUSAL_LM"))
    fill(adapted, 0.01)
    adapted.save_pretrained(tmp_path / "adapter")
    command, target = ["export", str(tmp_path / "adapter"), str(tmp_path / "target")], tmp_path / "target"
    assert main(command) == 2
    wanted = "nothing is written: bfloat16 weights cannot hold it: give --dtype float32, or use it unmerged\n"
    assert capsys.readouterr().err.endswith(wanted)
    assert main([*command, "--dtype", "float32"]) == 0
    assert json.loads((target / "config.json").read_text())["dtype"] == "float32"
    assert {tensor.dtype for tensor in load_file(target / "model.safetensors").values()} == {torch.float32}
    found, effect = logits(BaichuanM1ForCausalLM.from_pretrained(target)), logits(adapted) - logits(base_model())
    assert 0 < effect.norm() < 0.01 * found.norm()
    assert (found - logits(adapted)).norm() < 1e-3 * effect.norm()


def test_a_target_that_cannot_be_made_is_refused_first(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "new" / "target"
    assert main(["export", str(adapter), str(target)]) == 2
    wanted = f"{target}: cannot be made, for {tmp_path / 'file'} is a file: give a folder elsewhere"
    assert capsys.readouterr().err == f"ascend-m1: error: {wanted}\n"
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert main(["export", str(adapter), str(tmp_path / "target")]) == 2
    wanted = f"{tmp_path / 'target'}: cannot be made, for {tmp_path} may not be written to: give a folder elsewhere"
    assert capsys.readouterr().err == f"ascend-m1: error: {wanted}\n"


def export_on_a_full_disk(adapter: Path, target: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300 * 1024, 300 * 1024))
    sys.exit(main(["export", str(adapter), str(target)]))


def test_a_disk_that_is_full(adapter: Path, tmp_path: Path) -> None:
    """Files of 300 KiB at most; nothing stays."""
    target, output = tmp_path / "target", tmp_path / "output"
    run = forks.start(output, export_on_a_full_disk, adapter, target)
    run.join()
    printed = output.read_text()
    assert run.exitcode == 2, printed
    assert printed.splitlines()[-1].startswith(f"ascend-m1: error: {target}: cannot be written (")
    assert printed.endswith("): free some space, or write elsewhere\n")
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_what_cannot_be_merged(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(folder: Path, *more: str) -> str:
        assert main(["export", str(folder), str(tmp_path / "target"), *more]) == 2
        assert not (tmp_path / "target").exists()
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        return line.removeprefix("ascend-m1: error: ")

    assert refused(tmp_path / "x") == (
        f"adapter {tmp_path / 'x'} is not a directory: give the folder that holds adapter_config.json"
    )
    assert refused(adapter, "--dtype", "int8") == "--dtype int8: give auto, float32, bfloat16, float16"
    assert refused(adapter, "--model", "/nowhere").startswith("model /nowhere does not exist")
    broken = Path(shutil.copytree(adapter, tmp_path / "broken"))
    path = broken / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    assert refused(broken) == f"{path}: tensor {name} is missing: copy the adapter again"
    other = name.replace("layers.1", "layers.9")
    save_file({**tensors, other: tensors[name].clone()}, path)
    assert refused(broken) == f"{path}: tensor {other} has no place in the base: give the one it was trained on"
    save_file({**tensors, name: tensors[name][:, :9].contiguous()}, path)
    assert "does not fit its base (size mismatch for" in refused(broken)
    for cut in (b"nothing", path.read_bytes()[:-100]):
        path.write_bytes(cut)
        line = refused(broken)
        assert line.startswith(f"{path} cannot be read (")
        assert line.endswith("): copy it again")
    path.unlink()
    assert refused(broken) == f"{path} does not exist: save the adapter with PEFT's save_pretrained"
    settings = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    assert refused(broken) == f"{broken / 'adapter_config.json'}: names no base: give --model"


@pytest.mark.parametrize("command", [["export", "adapter", "target"], ["generate", "--adapter", "adapter", "x"]])
def test_the_embedded_base_of_an_adapter_from_elsewhere_is_found(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base is read, so what is said to be missing is the adapter's weights."""
    monkeypatch.chdir(tmp_path)
    Path("adapter").mkdir()
    there = "/elsewhere/site-packages/ascend_m1/checkpoints/m1_icd10"
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": there}
    Path("adapter/adapter_config.json").write_text(json.dumps(settings))
    assert main(command) == 2
    assert "error: adapter/adapter_model.safetensors does not exist: save the adapter" in capsys.readouterr().err
    Path("adapter/adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "/no/m1_icd10"}))
    assert main(command) == 2
    assert "error: model /no/m1_icd10 does not exist" in capsys.readouterr().err
