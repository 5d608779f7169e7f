"""``python -m ascend_m1_hostnpu``: a program that knows nothing of the host NPU runs on it, with all it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
USE = "import torch; print((torch.ones(2).to('npu') + 1).tolist())"


def python(*arguments: str, path: str = "", text: str | None = None) -> subprocess.CompletedProcess[str]:
    """A Python that knows the package, without what this process's environment says about torch_npu."""
    hidden = ("TORCH_DEVICE_BACKEND_AUTOLOAD", "TRITON_INTERPRET", "TASK_QUEUE_ENABLE")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [path, str(ROOT / "ops")]))
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, input=text, capture_output=True, text=True, timeout=100)


def run(*arguments: str, path: str = "", text: str | None = None) -> subprocess.CompletedProcess[str]:
    return python("-m", "ascend_m1_hostnpu", *arguments, path=path, text=text)


def last(result: subprocess.CompletedProcess[str]) -> str:
    """The last line a program printed; torch_npu prints a warning of its own first."""
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


def test_a_script_is_run_as_by_plain_python(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfirst = [name for name in sys.modules if name.startswith(('torch', 'ascend_m1', 'numpy'))]\n"
        f"{USE}\n"
        "print(__name__, __file__, sys.argv, sys.path[0], first)\nsys.exit(7)\n"
    )
    result = run(str(script), "--launches", "-c", "x y")
    assert result.returncode == 7
    assert result.stdout.splitlines()[-2:] == [
        "[2.0, 2.0]",
        f"__main__ {script} {[str(script), '--launches', '-c', 'x y']} {tmp_path} []",
    ]


def test_an_exception_ends_it_as_always() -> None:
    result = run("-c", "raise KeyError('lost')")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "KeyError: 'lost'"
    assert "ascend_m1_hostnpu" not in result.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import torch_npu, torch",
        "import torch, torch_npu",
        "import ascend_m1_hostnpu, torch",
        "import ascend_m1_hostnpu, torch_npu, torch",
        "import torch, ascend_m1_hostnpu",
    ],
)
def test_any_order_of_imports_works(code: str) -> None:
    assert last(run("-c", f"{code}\n{USE}")) == "[2.0, 2.0]"


def test_code_from_standard_input_and_interpreter_flags() -> None:
    code = "import sys; print(sys.flags.optimize, sys.argv)"
    assert last(python("-O", "-m", "ascend_m1_hostnpu", "-", "a", text=code)) == "1 ['-', 'a']"


def test_a_module_is_found_and_gets_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "tool.py").write_text(f"import sys\n{USE}\nprint(__name__, sys.argv[1:])\n")
    assert last(run("-m", "tool", "--devices", "9", path=str(tmp_path))) == "__main__ ['--devices', '9']"


def test_options_choose_product_and_devices() -> None:
    code = "import torch; print(torch.npu.get_device_name(0), torch.npu.device_count())"
    assert last(run("--product", "A3", "--devices=3", "-c", code)) == "Ascend910_9391 3"


def test_children_run_on_it_too(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import subprocess, sys\nimport torch.multiprocessing as mp\nimport torch\n"
        "def work(rank, queue): queue.put((torch.ones(1).npu() + rank).item())\n"
        "if __name__ == '__main__':\n"
        "    context = mp.get_context('spawn')\n    queue = context.Queue()\n"
        "    child = context.Process(target=work, args=(1, queue))\n    child.start()\n"
        f"    other = subprocess.run([sys.executable, '-c', {USE!r}], capture_output=True, text=True, check=True)\n"
        "    print(queue.get(timeout=60), other.stdout.splitlines()[-1])\n    child.join()\n"
    )
    assert last(run(str(script))) == "2.0 [2.0, 2.0]"


def test_torchrun_starts_a_group(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys, torch, torch.distributed as dist\n"
        "rank = int(os.environ['RANK'])\ntorch.npu.set_device(rank)\ndist.init_process_group('hccl')\n"
        "x = torch.full((2,), rank + 1.0, device='npu')\ndist.all_reduce(x)\n"
        "pathlib.Path(sys.argv[1], str(rank)).write_text(str(x.tolist()))\ndist.destroy_process_group()\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(tmp_path)]
    result = run("--devices", "2", "--launches", *launcher)
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["[3.0, 3.0]"] * 2
    assert "host NPU, rank 1:" in result.stderr


def test_launches_are_listed_with_their_bytes_at_exit() -> None:
    result = run("--launches", "-c", "import torch; x = torch.ones(4).to('npu'); y = x + 1 + 1")
    rows = [line.split() for line in result.stderr.splitlines()]
    assert ["2", "32", "32", "aclnnAdds"] in rows


def test_an_unrelated_child_pays_nothing_and_other_customizations_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.custom = __file__\n")
    code = "import sys; print(sys.custom, [name for name in sys.modules if name.startswith(('torch', 'ascend_m1'))])"
    assert last(run("-c", code, path=str(tmp_path))) == f"{tmp_path / 'sitecustomize.py'} []"


def test_without_the_runner_a_child_that_wants_plain_torch_gets_it() -> None:
    child = "import torch; print(torch.ones(1).tolist())"
    call = f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    assert last(python("-c", f"import ascend_m1_hostnpu, torch_npu, subprocess, sys; {call}")) == "[1.0]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to run"),
        (["-c"], "nothing to run"),
        (["--product", "910A", "x.py"], "--product 910A: use one of 910B, A3, 310P, 950"),
        (["--product"], "--product : use one of"),
        (["--devices", "0", "x.py"], "--devices 0: give a number of at least 1"),
        (["--speed", "x.py"], "--speed: no such option"),
        (["missing.py"], "missing.py: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_the_list_names_operators_and_collectives() -> None:
    result = run("--list")
    lines = result.stdout.splitlines()
    assert {"aclnnRmsNorm", "aclnnMm", "HcclAllReduce"} <= set(lines)
    assert "HcclCommInitAll" in lines[-1]
