"""Compiled decode steps kept in a folder: another process takes them from there and need not trace the model again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Prints what a greedy run gave, how many functions were traced for it and where their compiled form lies.
PROGRAM = """
import json, sys
import ascend_m1_hostnpu
import torch, torch_npu
from torch._dynamo.utils import counters
from ascend_m1.decode import Decoder
from tests.model.paged_run import Server
from tests.npu.golden import load, load_prompts

graph, folder, sizes = sys.argv[1], sys.argv[2], [int(size) for size in sys.argv[3:]]
torch.manual_seed(0)
short = [(ids.tolist(), greedy.tolist()[:6]) for ids, _, greedy in load_prompts("hybrid") if len(ids) < 10]
prompts, greedy = map(list, zip(*short))
server = Server(load("hybrid", torch.float32, "npu"), len(prompts), graph)
right = True
for size in sizes:
    server.decoder = Decoder(server.model, server.cache, size, 512, graph, cache_dir=folder)
    right &= server.run(prompts, 6).tokens == greedy
print(json.dumps({"right": right, "traced": counters["stats"]["unique_graphs"]}))
"""


def run(graph: str, folder: Path, *sizes: int) -> dict[str, object]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "ops")])}
    command = [sys.executable, "-c", PROGRAM, graph, str(folder), *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("graph", ["npugraph_ex", "cann"])
def test_second_process_traces_nothing_and_gives_the_same_tokens(graph: str, tmp_path: Path) -> None:
    assert run(graph, tmp_path, 7) == {"right": True, "traced": 1}
    assert len(list(tmp_path.rglob("compiled_module"))) == 1
    assert run(graph, tmp_path, 7) == {"right": True, "traced": 0}


@pytest.mark.parametrize("graph", ["npugraph_ex", "cann"])
def test_each_batch_size_has_a_file_of_its_own(graph: str, tmp_path: Path) -> None:
    """Whether compiled in one process or in two."""
    assert run(graph, tmp_path, 7, 8) == {"right": True, "traced": 2}
    assert len(list(tmp_path.rglob("compiled_module"))) == 2
    assert run(graph, tmp_path, 8, 9) == {"right": True, "traced": 1}
    assert len(list(tmp_path.rglob("compiled_module"))) == 3
