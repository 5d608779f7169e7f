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
    """The last line that a program printed."""
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
    arguments = [str(script), "--launches", "-c", "x y"]
    assert result.stdout.splitlines() == ["[2.0, 2.0]", f"__main__ {script} {arguments} {tmp_path} []"]
    assert "Warning" in result.stderr  # what torch_npu says when it is imported is not the program's output


def test_an_exception_ends_it_as_always() -> None:
    result = run("-c", "raise KeyError('lost')")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "KeyError: 'lost'"
    assert "ascend_m1_hostnpu" not in result.stderr


@pytest.mark.parametrize(
    ("code", "product", "name"),
    [
        ("import torch_npu, torch", "A3", "Ascend910_9391"),
        ("import torch, torch_npu", "910B", "Ascend910B3"),
        ("import ascend_m1_hostnpu, torch", "310P", "Ascend310P3"),
        ("import ascend_m1_hostnpu, torch_npu, torch", "950", "Ascend950PR_9589"),
        ("import torch, ascend_m1_hostnpu", "910B", "Ascend910B3"),
    ],
)
def test_any_order_of_imports_works_with_any_product(code: str, product: str, name: str) -> None:
    options = ["--product", product, "--devices=3"]
    result = run(*options, "-c", f"{code}\n{USE}\nprint(torch.npu.get_device_name(0), torch.npu.device_count())")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["[2.0, 2.0]", f"{name} 3"]


def test_code_from_standard_input_and_interpreter_flags() -> None:
    code = "import sys; print(sys.flags.optimize, sys.argv)"
    result = python("-O", "-X", "importtime", "-m", "ascend_m1_hostnpu", "-", "a", text=code)
    assert last(result) == "1 ['-', 'a']"
    # The Python that starts the other loads nothing.
    assert "torch" not in {line.split()[-1] for line in result.stderr.splitlines()}


def test_a_module_is_found_and_gets_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "tool.py").write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    assert last(run("-m", "tool", "--devices", "9", path=str(tmp_path))) == "__main__ ['--devices', '9']"


def test_children_run_on_it_too(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing as mp, subprocess, sys\n"
        "def work(rank, queue):\n    import torch\n    queue.put((torch.ones(1).npu() + rank).item())\n"
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
        (["-v", "x.py"], "-v: no such option"),
        (["missing.py"], "missing.py: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_the_products_command_says_that_it_is_no_device() -> None:
    result = run("-m", "ascend_m1", "env", path=str(ROOT))
    assert result.returncode == 0, result.stderr
    devices, use = (
        next(line for line in result.stdout.splitlines() if line.strip().startswith(word))
        for word in ("devices", "Ascend NPU:")
    )
    assert devices.endswith("npu:0 (Ascend910B3) (host NPU, not a device)")
    assert "host NPU, not a device" in use


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option: str) -> None:
    result = run(option)
    assert result.returncode == 0
    assert result.stdout.startswith("python -m ascend_m1_hostnpu [options]")
    assert result.stderr == ""


@pytest.mark.parametrize("arguments", [("-c", "pass"), ("--list",)])
def test_without_torch_npu_it_is_one_line(arguments: tuple[str, ...]) -> None:
    result = python("-S", "-m", "ascend_m1_hostnpu", *arguments)  # no site-packages
    message = "ascend_m1_hostnpu: torch_npu is not installed: install torch and torch-npu of the same version"
    assert (result.returncode, result.stderr.splitlines()) == (2, [message])


def test_a_setting_without_meaning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNPU_DEVICES", "two")
    result = run("-c", "pass")
    message = "ascend_m1_hostnpu: HOSTNPU_DEVICES=two: give a whole number of at least 1"
    assert (result.returncode, result.stderr.splitlines()) == (2, [message])
    assert last(run("--devices", "2", "-c", "import os; print(os.environ['HOSTNPU_DEVICES'])")) == "2"


def test_the_list_names_operators_and_collectives() -> None:
    result = run("--list")
    lines = result.stdout.splitlines()
    assert {"aclnnRmsNorm", "aclnnMm", "HcclAllReduce"} <= set(lines)
    assert "HcclCommInitAll" in lines[-1]
