"""Exported graphs run without the model's code, without torch, and give the same tokens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, bfloat16, float16, float32, int32

from ascend_m1.checkpoint_files import read_json
from ascend_m1.cli import main
from ascend_m1.configuration_baichuan_m1 import BaichuanM1Config
from ascend_m1.errors import CheckpointError, DeviceError
from ascend_m1.mindspore.device import choose
from ascend_m1.mindspore.mindir import MANIFEST, export, load
from ascend_m1.mindspore.model import Core, Decode, Prefill
from ascend_m1.mindspore.runner import prefill
from ascend_m1.mindspore.state import state_shapes
from ascend_m1.mindspore.weights import Weights
from ascend_m1.writing import whole_folder

from .conftest import GENERATE, Cli
from .golden import ROOT, greedy, load_core, load_prompts

pytestmark = pytest.mark.xdist_group("mindir")

# With the runner, and with MindSpore alone; each prints the continuations.
RUNNER = """
import json, sys
from pathlib import Path
from transformers import GenerationConfig
from ascend_m1.mindspore.device import choose
from ascend_m1.mindspore.mindir import load
from ascend_m1.mindspore.runner import generate_ids

graphs = load(Path(sys.argv[1]), choose("cpu", "auto", "float32"))
config = GenerationConfig(max_new_tokens=24, do_sample=False)
print(json.dumps([list(generate_ids(graphs, ids, config)) for ids in json.loads(sys.argv[2])]))
known = {"ascend_m1.mindspore.model", "ascend_m1.mindspore.layers", "ascend_m1.mindspore.weights", "torch"}
assert not known & set(sys.modules), known & set(sys.modules)
"""
ALONE = """
import json, sys
import mindspore
import numpy as np
from mindspore import Tensor, int32, nn

folder, made = sys.argv[1], []
manifest = json.load(open(folder + "/mindir.json"))
prefill, decode = (nn.GraphCell(mindspore.load(f"{folder}/{manifest[name]}")) for name in ("prefill", "decode"))
for ids in json.loads(sys.argv[2]):
    state = [Tensor(np.zeros(shape, np.float32)) for shape in manifest["state"]]
    for start in range(0, len(ids), manifest["chunk"]):
        part = ids[start : start + manifest["chunk"]]
        padded = part + [0] * (manifest["chunk"] - len(part))
        logits, *state = prefill(Tensor([padded], int32), Tensor([start], int32), Tensor([len(part)], int32), *state)
    new = [int(logits.asnumpy().argmax())]
    while len(new) < 24:
        position = Tensor([len(ids) + len(new) - 1], int32)
        logits, *state = decode(Tensor([[new[-1]]], int32), position, *state)
        new.append(int(logits.asnumpy().argmax()))
    made.append(new)
print(json.dumps(made))
assert not {"ascend_m1", "torch"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hybrid case, in chunks of 16; not to be changed."""
    target = tmp_path_factory.mktemp("mindir") / "hybrid"
    target.mkdir()
    export(load_core("hybrid"), ROOT / "hybrid", target, 16)
    return target


@pytest.mark.parametrize("program", [RUNNER, ALONE], ids=["runner", "alone"])
def test_round_trip(exported: Path, program: str) -> None:
    prompts = load_prompts("hybrid")
    asked = json.dumps([prompt.ids for prompt in prompts])
    ran = subprocess.run([sys.executable, "-c", program, exported, asked], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [prompt.greedy for prompt in prompts]


def test_each_graph_is_compiled_once(exported: Path) -> None:
    graphs = load(exported, choose("cpu", "auto", "float32"))
    for prompt in load_prompts("hybrid"):
        assert greedy(graphs, prompt) == prompt.greedy
    assert [len(graph.compile_cache) for graph in (graphs.prefill, graphs.decode)] == [1, 1]


def test_a_model_so_large_that_mindspore_splits_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 1 GB on, lowered here to 64 KB: graph and weights apart, the latter for others to read, too."""
    monkeypatch.setattr("mindspore.train.serialization.TOTAL_SAVE", 64)  # in KB
    target = tmp_path / "split"
    with whole_folder(target) as folder:
        export(load_core("hybrid"), ROOT / "hybrid", folder, 16)
    assert {path.name for path in target.iterdir()} == {
        *(MANIFEST, "config.json", "prefill_graph.mindir", "decode_graph.mindir"),
        *("prefill_variables", "decode_variables"),
    }
    assert len({path.stat().st_mode for path in target.rglob("*") if path.is_file()}) == 1
    prompt = load_prompts("hybrid")[0]
    assert greedy(load(target, choose("cpu", "auto", "float32")), prompt) == prompt.greedy


@pytest.mark.parametrize(
    ("field", "value", "raised", "said"),
    [
        ("capacity", None, CheckpointError, "field capacity=None"),
        ("capacity", 100000, CheckpointError, "field capacity=100000"),
        ("chunk", True, CheckpointError, "field chunk=True"),
        ("chunk", 0, CheckpointError, "field chunk=0"),
        ("state", ["x"], CheckpointError, r"field state=\['x'\]"),
        ("state", [], CheckpointError, r"field state=\[\]"),
        ("dtype", "bfloat16", DeviceError, "exported in bfloat16, asked for float32"),
        ("fused", True, DeviceError, "exported on an Ascend NPU"),
        ("decode", "missing.mindir", CheckpointError, r"missing\.mindir: cannot be loaded"),
        ("decode", "config.json", CheckpointError, r"config\.json: cannot be loaded"),
    ],
)
def test_a_damaged_folder(
    exported: Path, tmp_path: Path, field: str, value: object, raised: type[Exception], said: str
) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    manifest = {**read_json(folder / MANIFEST), field: value}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(raised, match=said):
        load(folder, choose("cpu", "auto", "float32"))


def test_a_chunk_that_is_not_the_graphs(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / MANIFEST).write_text(json.dumps({**read_json(folder / MANIFEST), "chunk": 17}), encoding="utf-8")
    graphs = load(folder, choose("cpu", "auto", "float32"))
    with pytest.raises(CheckpointError, match=r"prefill\.mindir: does not take what mindir\.json says"):
        prefill(graphs, [1, 2])


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint, by the command; not to be changed."""
    target = tmp_path_factory.mktemp("embedded") / "exported"
    assert main(["mindir", str(target), "--device", "cpu", "--context", "150", "--dtype", "float32"]) == 0
    return target


def test_the_folder_is_whole_for_others_to_read_and_alone(embedded: Path) -> None:
    made = {path.name for path in embedded.iterdir()}
    assert {MANIFEST, "config.json", "prefill.mindir", "decode.mindir", "tokenizer.json"} <= made
    assert len({path.stat().st_mode for path in embedded.iterdir()}) == 1  # MindSpore's own is 0400
    assert [path.name for path in embedded.parent.iterdir()] == ["exported"]
    assert read_json(embedded / "config.json")["max_position_embeddings"] == 150


def test_the_program_of_the_document(embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands there. That such a program needs neither the package nor torch, ``ALONE`` shows."""
    text = (Path(__file__).parents[2] / "docs/mindspore.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert ("/models/m1-mindir" in program, "ascend_m1" in program) == (True, False)
    exec(program.replace("/models/m1-mindir", str(embedded)), {})
    assert capsys.readouterr().out == "Asthma\n"


FULL = """
import resource, sys
from ascend_m1.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))
sys.exit(main(["mindir", sys.argv[1], "--device", "cpu", "--context", "150", "--dtype", "float32"]))
"""


def test_nothing_is_left_where_a_disk_is_full(tmp_path: Path) -> None:
    """MindSpore's own OSError, which names no file."""
    target = tmp_path / "target"
    ran = subprocess.run([sys.executable, "-c", FULL, target], capture_output=True, text=True)
    said = f"ascend-m1: error: {target}: cannot be written (File too large): free some space, or write elsewhere"
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (2, said)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_of_several_chunks_is_answered_as_without_export(cli: Cli, embedded: Path) -> None:
    generate = (*GENERATE, "--dtype", "float32", "--max-new-tokens", 8)
    prompt = "What does ICD-10-CM code J45 mean? " * 9
    plain = cli(*generate, prompt)
    assert plain.status == 0
    assert cli(*generate, "--model", embedded, prompt) == plain


def test_sampling(cli: Cli, embedded: Path) -> None:
    common = (*GENERATE, "--model", embedded, "--raw", "The", "--max-new-tokens", 12)
    hot = (*common, "--temperature", 3)
    assert cli(*hot, "--seed", 3) == cli(*hot, "--seed", 3)
    assert len({cli(*hot, "--seed", seed).out for seed in (4, 5)}) > 1
    assert cli(*common) == cli(*common, "--temperature", 0) == cli(*hot, "--top-k", 1)
    assert cli(*common).out != cli(*common, "--repetition-penalty", 0.2).out
    assert cli(*common).status == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*GENERATE, "--model", "EXPORTED", "x" * 1000), "(max_position_embeddings) 150"),
        (("mindir", "EXPORTED"), "exists: give a new folder"),
        (("mindir", "new", "--device", "cpu", "--context", 4096), "--context 4096: give 2 to 1024"),
        (("mindir", "new", "--device", "cpu", "--context", 1), "--context 1: give 2 to 1024"),
        # The weights are missing, too: they are looked at later.
        (("mindir", "below a file", "--device", "cpu", "--model", "EXPORTED"), "Not a directory: check the path"),
        (("mindir", "new", "--device", "cpu", "--model", "EXPORTED"), "no model.safetensors"),
    ],
)
def test_refusals(cli: Cli, embedded: Path, tmp_path: Path, arguments: tuple[object, ...], said: str) -> None:
    places = {"EXPORTED": embedded, "new": tmp_path / "new", "below a file": embedded / MANIFEST / "new"}
    ran = cli(*[places.get(argument, argument) for argument in arguments])
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


FUSED_ATTENTION, FUSED = b"FusedInferAttentionScore", {b"RmsNorm", b"Swiglu"}
COMPOSED_ATTENTION, COMPOSED = {b"BatchMatMul", b"Softmax"}, {b"SiLU", b"Rsqrt"}


@pytest.mark.parametrize(
    ("dtype", "fused", "holds", "lacks"),
    [
        (bfloat16, True, FUSED | {FUSED_ATTENTION}, COMPOSED | COMPOSED_ATTENTION),
        (float16, True, FUSED | {FUSED_ATTENTION}, COMPOSED | COMPOSED_ATTENTION),
        (float32, True, FUSED | COMPOSED_ATTENTION, COMPOSED | {FUSED_ATTENTION}),
        (float32, False, COMPOSED | COMPOSED_ATTENTION, FUSED | {FUSED_ATTENTION}),
    ],
    ids=["bfloat16", "float16", "float32", "composed"],
)
def test_ascend_operators_pass_the_compilers_front_end(
    tmp_path: Path, dtype: Any, fused: bool, holds: set[bytes], lacks: set[bytes]
) -> None:
    """Shapes and dtypes are inferred; there are no kernels here to run the fused form. Decode has 3 rows."""
    folder = ROOT / "page-ratio"
    config = BaichuanM1Config.from_dict(read_json(folder / "config.json"))
    core = Core(config, Weights(folder, config), 128, dtype, fused)
    one, rows = Tensor([1], int32), 3
    forms = {
        "prefill": (1, Prefill(core), Tensor(np.zeros((1, 64)), int32), one, one),
        "decode": (rows, Decode(core), Tensor(np.zeros((rows, 1)), int32), Tensor([1] * rows, int32)),
    }
    for name, (batch, cell, *inputs) in forms.items():
        state = [Tensor(np.zeros([batch, *shape[1:]]), dtype) for shape in state_shapes(config, core.capacity)]
        mindspore.export(cell, *inputs, *state, file_name=str(tmp_path / name), file_format="MINDIR")
        primitives = set(re.findall(rb"REF::(\w+)", (tmp_path / f"{name}.mindir").read_bytes()))
        assert holds <= primitives, holds - primitives
        assert not lacks & primitives
