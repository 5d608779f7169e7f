"""Published directories: no remote code, shards, dtypes, device maps, and a round trip that keeps names and keys."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM, BaichuanM1Model

from ..conftest import GOLDEN
from .small import config, model

SHARD = 25_000_000
AUTO_MAP = {
    "AutoConfig": "configuration_baichuan.BaichuanM1Config",
    "AutoModel": "modeling_baichuan.BaichuanM1Model",
    "AutoModelForCausalLM": "modeling_baichuan.BaichuanM1ForCausalLM",
}


def published(folder: Path, remote_code: str | None) -> Path:
    """A copy of a golden checkpoint that points to remote code, which raises or is not there."""
    shutil.copytree(GOLDEN / "hybrid", folder, dirs_exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": AUTO_MAP}))
    for name in ("configuration_baichuan", "modeling_baichuan"):
        if remote_code is not None:
            (folder / f"{name}.py").write_text(remote_code)
    return folder


@pytest.mark.parametrize("remote_code", [None, "raise SystemExit('remote code was executed')"])
@pytest.mark.parametrize("options", [{}, {"trust_remote_code": False}, {"trust_remote_code": True}])
def test_no_remote_code_is_executed(tmp_path: Path, remote_code: str | None, options: dict[str, bool]) -> None:
    folder = published(tmp_path, remote_code)
    assert type(AutoConfig.from_pretrained(folder, **options)) is BaichuanM1Config
    assert type(AutoModel.from_pretrained(folder, **options)) is BaichuanM1Model
    assert type(AutoModelForCausalLM.from_pretrained(folder, **options)) is BaichuanM1ForCausalLM


def test_sharded_round_trip_is_bit_equal(tmp_path: Path) -> None:
    lm = model()
    lm.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    again = BaichuanM1ForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    for name, tensor in lm.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_saving_keeps_published_names_and_keys(tmp_path: Path) -> None:
    lm = BaichuanM1ForCausalLM.from_pretrained(GOLDEN / "hybrid")
    lm.save_pretrained(tmp_path)
    names = []
    for folder in (GOLDEN / "hybrid", tmp_path):
        with safe_open(folder / "model.safetensors", framework="pt") as tensors:
            names.append({name: tensors.get_slice(name).get_shape() for name in tensors.keys()})  # noqa: SIM118
    assert names[0] == names[1]
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (GOLDEN / "hybrid", tmp_path))
    assert {key: after.get(key) for key in before} == before
    assert after["rope_theta"] == 10000.0  # where every other reader of the format looks for it


@pytest.mark.parametrize(
    ("asked", "stored", "expected"),
    [
        ("auto", torch.bfloat16, torch.bfloat16),
        ("auto", torch.float16, torch.float16),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        ("float16", torch.float32, torch.float16),
    ],
)
def test_dtype(tmp_path: Path, asked: Any, stored: torch.dtype, expected: torch.dtype) -> None:
    model().to(stored).save_pretrained(tmp_path)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=asked)
    assert {parameter.dtype for parameter in lm.parameters()} == {expected}
    assert lm(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_device_map(tmp_path: Path, device_map: Any) -> None:
    lm, prompt = model(), torch.tensor([[5, 6, 7, 8]])
    lm.save_pretrained(tmp_path, max_shard_size="100KB")
    placed = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device_map, dtype=torch.float64)
    assert torch.equal(placed.generate(prompt, max_new_tokens=9), lm.generate(prompt, max_new_tokens=9))


def test_missing_local_directory_is_left_to_transformers(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-model"):
        BaichuanM1ForCausalLM.from_pretrained(pretrained_model_name_or_path=str(tmp_path / "no-such-model"))


MEASURE = """
import sys, threading
from ascend_m1 import BaichuanM1ForCausalLM

small, large, dtype, field = sys.argv[1:]

def resident() -> int:
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields[field].split()[0]) * 1024

BaichuanM1ForCausalLM.from_pretrained(small, dtype=dtype)  # everything imported, every allocator warm
before, peak, done = resident(), 0, threading.Event()

def watch() -> None:
    global peak
    while not done.wait(0.002):
        peak = max(peak, resident())

watcher = threading.Thread(target=watch)
watcher.start()
model = BaichuanM1ForCausalLM.from_pretrained(large, dtype=dtype)
done.set()
watcher.join()
model(model.dummy_inputs["input_ids"])  # touch every weight: a mapped file is resident only once it is read
print(max(peak, resident()) - before, sum(p.nbytes for p in model.parameters()))
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small one, and one of 260 MB in shards of at most 25 MB."""
    small, large = (tmp_path_factory.mktemp(name) for name in ("small", "large"))
    model().float().save_pretrained(small)
    big = BaichuanM1ForCausalLM(config(hidden_size=960, intermediate_size=3840, num_hidden_layers=4, vocab_size=6000))
    big.save_pretrained(large, max_shard_size=SHARD)
    assert len(list(large.glob("model-*.safetensors"))) > 5
    return small, large


@pytest.mark.parametrize(
    # As stored, the weights are the mapped files themselves, so all resident pages count. Converted, they are new
    # pages, and the mapped files are the file system's cache, which the kernel takes back when it needs the room.
    ("dtype", "field"),
    [("float32", "VmRSS"), ("bfloat16", "RssAnon")],
)
def test_loading_needs_the_model_and_one_shard(checkpoints: tuple[Path, Path], dtype: str, field: str) -> None:
    """The 14B is 27 GB: a second copy of it while loading would not fit where the first one does."""
    command = [sys.executable, "-c", MEASURE, *map(str, checkpoints), dtype, field]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    peak, size = map(int, result.stdout.split()[-2:])
    assert size > 120_000_000
    assert peak > size / 2  # the measurement sees the weights at all
    # 24 MB are for Python objects, the activations of one forward and the allocator's slack.
    assert peak < size + SHARD + 24_000_000
