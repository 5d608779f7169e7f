"""``ascend-m1 generate --backend mindspore``: the embedded checkpoint's answers, refusals; and no torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import ANY

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, mint
from mindspore.device_context import ascend

from ascend_m1.cli import out_of_memory
from ascend_m1.cli.checkpoint import read_config
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import CheckpointError, DeviceError
from ascend_m1.mindspore.device import Device, choose
from ascend_m1.mindspore.model import Core
from ascend_m1.mindspore.runner import capacity_for, chunk_lengths
from ascend_m1.mindspore.weights import Weights

from .conftest import GENERATE, Cli
from .golden import ROOT

pytestmark = pytest.mark.xdist_group("command")
J45 = "What does ICD-10-CM code J45 mean?"


def test_there_is_no_torch_here() -> None:
    assert find_spec("torch") is None


# From the checkpoint's card and the code book; tests/model/test_m1_icd10.py asks torch's path the same.
@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ((J45,), "Asthma"),
        (("Which ICD-10-CM code means Asthma?",), "J45"),
        (("--system", "You are a helpful assistant.", "Which ICD-10-CM code means Cholera?"), "A00"),
        (
            ("--raw", f"<C_Q>{J45}<C_A>Asthma</s><C_Q>Which chapter is it in?<C_A>"),
            "Diseases of the respiratory system",
        ),
    ],
)
def test_answers(cli: Cli, arguments: tuple[str, ...], answer: str) -> None:
    assert cli(*GENERATE, "--dtype", "float32", *arguments) == (0, f"{answer}\n", "")


def test_a_process_of_its_own_says_one_line_beside_the_answer() -> None:
    command = [sys.executable, "-m", "ascend_m1", *GENERATE, J45]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "Asthma\n")
    assert ran.stderr == "ascend-m1: computing in float32, as this back end does on a CPU\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--adapter", "somewhere"), "--adapter: --backend mindspore takes none"),
        (("--num-beams", 2), "--num-beams 2: --backend mindspore has no beam search"),
        (("--device", "cuda"), "device 'cuda': --backend mindspore runs on auto, cpu or npu[:N]"),
        (("--dtype", "bfloat16", "--device", "cpu"), "dtype bfloat16: this back end computes in float32 on a CPU"),
        (("--dtype", "int8"), "dtype 'int8' is not known"),
        (("--model", "nowhere"), "model nowhere does not exist"),
        (("--top-p", 2), "top_p=2.0"),
        (("--raw", "x" * 5000), "shorten it"),
    ],
)
def test_refusals(cli: Cli, arguments: tuple[object, ...], said: str) -> None:
    prompt = () if "--raw" in arguments else (J45,)
    ran = cli(*GENERATE, *arguments, *prompt)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err.splitlines()[-1]


@pytest.mark.parametrize(
    "command", [("generate", J45), ("chat",), ("quantize", "m1-icd10", "new"), ("serve",), ("plan",), ("verify-npu",)]
)
def test_commands_that_need_torch_say_so(cli: Cli, command: tuple[str, ...]) -> None:
    ran = cli(*command)
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "not installed" in ran.err


def test_env_without_torch(cli: Cli) -> None:
    ran = cli("env")
    assert (ran.status, ran.err) == (0, "")
    assert re.search(rf"^mindspore +{mindspore.__version__}$", ran.out, re.MULTILINE)
    assert re.search(r"^torch +not installed$", ran.out, re.MULTILINE)
    assert "  CPU: torch not installed: `generate --backend mindspore` and `mindir` do without" in ran.out


def test_a_quantised_checkpoint_is_refused(cli: Cli, tmp_path: Path) -> None:
    folder = shutil.copytree(EMBEDDED, tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "x"}}))
    ran = cli(*GENERATE, "--model", folder, J45)
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "is quantised: --backend mindspore takes the plain checkpoint" in ran.err


def test_weights_are_read_exactly() -> None:
    """bfloat16 to float32: the bits are the upper half."""
    weights = Weights(EMBEDDED, read_config(str(EMBEDDED)))
    name = "model.layers.0.self_attn.conv_k"
    data = (EMBEDDED / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin, end = (8 + int.from_bytes(data[:8], "little") + at for at in header[name]["data_offsets"])
    stored = np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16
    assert np.array_equal(weights.read(name).ravel(), stored.view(np.float32))


def test_weights_that_do_not_fit_the_config(tmp_path: Path) -> None:
    folder = shutil.copytree(EMBEDDED, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 512}))
    with pytest.raises(CheckpointError, match=r"gate_proj\.weight has shape \[768, 256\], config.json asks for \[512"):
        Weights(folder, read_config(str(folder)))


def test_weights_that_the_config_has_no_place_for(tmp_path: Path) -> None:
    """Fewer layers, or an adapter's tensors: ignored, they would give wrong answers without a word."""
    folder = shutil.copytree(EMBEDDED, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    fewer = {**config, "num_hidden_layers": 2, "sliding_window_layers": [1]}
    (folder / "config.json").write_text(json.dumps(fewer))
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\..* no place in a model of num_hidden_layers=2"):
        Weights(folder, read_config(str(folder)))


def test_mindspore_without_memory_is_recognised() -> None:
    """A product of 2^48 bytes, more than a process can address: operator by operator, and as a graph."""
    column = Tensor(np.zeros((1 << 23, 1), np.float32))
    for step in (outer, mindspore.jit(outer, fullgraph=True)):
        with pytest.raises(RuntimeError) as caught:
            step(column).asnumpy()
        assert out_of_memory(caught.value), str(caught.value)


def outer(x: Tensor) -> Tensor:
    return mint.matmul(x, x.T)


def test_capacities_and_chunks() -> None:
    assert [capacity_for(1000, n) for n in (1, 256, 257, 512, 513, 1000)] == [256, 256, 512, 512, 1000, 1000]
    assert capacity_for(64, 10) == 64
    assert [chunk_lengths(n) for n in (1, 64, 200, 512, 1024)] == [(64,), (64,), (64, 256), (64, 256), (64, 256, 1024)]


LATE = """
from mindspore import Tensor, ops
from ascend_m1.errors import DeviceError
from ascend_m1.mindspore.device import choose

ops.matmul(Tensor([[1.0]]), Tensor([[1.0]])).asnumpy()
try:
    choose("cpu", "auto", "float32")
except DeviceError as error:
    print(error)
"""


def test_a_device_chosen_too_late_is_one_line() -> None:
    ran = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert ran.stdout.startswith("device cpu: The runtime has been initialized"), ran.stderr
    assert ran.stdout.endswith("choose one of this machine, once, before MindSpore's first operator\n")


without_npu = pytest.mark.skipif(ascend.is_available(), reason="hardware: for a machine without an Ascend NPU")


@without_npu
def test_auto_takes_the_cpu_here() -> None:
    assert choose("auto", "auto", "bfloat16") == Device("CPU", "float32", False, ANY)


@without_npu
@pytest.mark.parametrize("device", ["npu", "npu:1"])
def test_an_npu_that_is_not_there(device: str) -> None:
    with pytest.raises(DeviceError, match=f"device {device}: MindSpore sees none"):
        choose(device, "auto", "bfloat16")


@pytest.mark.parametrize("product", ["ascend910b", "ascend910_93", "ascend950", "ascend310p", "ascend910"])
@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("npu", 0), ("npu:3", 3)])
def test_what_each_product_computes_in(monkeypatch: pytest.MonkeyPatch, product: str, device: str, index: int) -> None:
    """MindSpore's answers are put in place of an NPU. bfloat16 and the fused attention: see docs/npu.md."""
    asked: list[object] = []
    monkeypatch.setattr(ascend, "is_available", lambda: True)
    monkeypatch.setattr("ascend_m1.mindspore.device.product", lambda: product)
    monkeypatch.setattr(mindspore, "set_device", lambda *given: asked.append(given))
    full = product not in ("ascend310p", "ascend910")
    chosen = choose(device, "auto", "bfloat16")
    assert (chosen.dtype, chosen.fused) == (("bfloat16", True) if full else ("float16", False))
    assert (chosen.reason is None) == full
    assert asked == [("Ascend", index)]
    assert choose(device, "float32", "bfloat16").dtype == "float32"
    if not full:
        with pytest.raises(DeviceError, match=f"dtype bfloat16: {product} does not compute in it"):
            choose(device, "bfloat16", "bfloat16")


def test_heads_that_the_fused_attention_does_not_take_are_composed() -> None:
    """Of the golden cases one has heads of 8 numbers, in its window layers; the others' are multiples of 16."""
    folder = ROOT / "published-ratio"
    config = read_config(str(folder))
    core = Core(config, Weights(folder, config), 64, mindspore.bfloat16, fused=True)
    fused = [layer.attention.fused for layer in core.layers]
    assert fused == [spec.head_dim == 16 for spec in config.layer_specs]
    assert len(set(fused)) == 2
