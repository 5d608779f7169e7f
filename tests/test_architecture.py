"""What a reader relies on: imports run one way, files stay short, the wheel installs known names only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOMES = {
    "ascend_m1": ".",
    "ascend_m1_ops": "ops",
    "ascend_m1_hostnpu": "ops",
    "ascend_m1_finetune": "finetune",
    "ascend_m1_openmind": "finetune",
    "ascend_m1_serve": "serve",
    "ascend_m1_vllm": "serve",
}
# Who may import whom. serve and finetune never see each other.
ALLOWED = {
    "ascend_m1_ops": set(),
    "ascend_m1_hostnpu": set(),
    "ascend_m1": {"ascend_m1_ops", "ascend_m1_hostnpu"},  # the latter in verify alone, see CONFINED
    "ascend_m1_finetune": {"ascend_m1", "ascend_m1_ops"},
    "ascend_m1_openmind": set(),  # openMind lives with another transformers
    "ascend_m1_serve": {"ascend_m1", "ascend_m1_ops", "ascend_m1_vllm"},  # the last in vllm_engine alone
    "ascend_m1_vllm": {"ascend_m1", "ascend_m1_ops"},
}
# Packages that only some places may know, and how (regular expressions on the path below the repository).
CONFINED = {
    "torch_npu": r"ops/ascend_m1_ops/.*/npu\.py|ops/ascend_m1_hostnpu/.*|ascend_m1/device\.py",
    "ascend_m1_hostnpu": r"ops/ascend_m1_hostnpu/.*|ascend_m1/verify/.*",
    "vllm": r"serve/ascend_m1_vllm/.*|serve/ascend_m1_serve/vllm_\w+\.py",
    "ascend_m1_vllm": r"serve/ascend_m1_vllm/.*|serve/ascend_m1_serve/vllm_\w+\.py",
    "fastapi": r"serve/ascend_m1_serve/api/.*",
    "mindspore": r"ascend_m1/mindspore/.*",
    "peft": r"finetune/.*",
    "openmind": r"finetune/ascend_m1_openmind/.*",
}
LAZY = {"torch_npu", "ascend_m1_hostnpu"}  # imported inside functions only: a machine without an NPU has neither
MAX_LINES = 400


def package_files(package: str) -> list[Path]:
    return sorted((ROOT / HOMES[package] / package).rglob("*.py"))


def all_files() -> list[Path]:
    return [path for package in HOMES for path in package_files(package)]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Absolute module names imported anywhere in a file, and whether at module level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(node) for scope in ast.walk(tree) if isinstance(scope, ast.FunctionDef) for node in ast.walk(scope)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        for name in names:
            yield name, id(node) not in inner


@pytest.mark.parametrize("package", HOMES)
def test_imports_run_one_way(package: str) -> None:
    for path in package_files(package):
        for name, _ in imports(path):
            top = name.split(".")[0]
            assert top == package or top not in HOMES or top in ALLOWED[package], f"{path}: imports {name}"


@pytest.mark.parametrize("confined", CONFINED)
def test_confined_packages(confined: str) -> None:
    for path in all_files():
        for name, at_module_level in imports(path):
            if name.split(".")[0] == confined:
                place = path.relative_to(ROOT).as_posix()
                assert re.fullmatch(CONFINED[confined], place), f"{place}: imports {confined}"
                lazy = confined not in LAZY or not at_module_level or "ascend_m1_hostnpu" in place
                assert lazy, f"{place}: import {confined} inside a function"


def test_no_import_circles() -> None:
    """Depth-first over module-level imports of our own modules."""
    modules: dict[str, Path] = {}
    for package, home in HOMES.items():
        for path in package_files(package):
            parts = path.relative_to(ROOT / home).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import circle: {' -> '.join((*trail, module))}"
        if module in done:
            return
        for needed in _own_imports(module, modules):
            visit(needed, (*trail, module))
        done.add(module)

    for module in modules:
        visit(module, ())


def test_mindspores_path_knows_no_torch() -> None:
    """Everything that its modules import of ours, at module level, and its modules anywhere.

    ``ascend_m1/__init__.py`` leaves torch's half out where torch is missing (tests/cli/test_without_torch.py); where
    it is installed, transformers itself imports it.
    """
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in package_files("ascend_m1")}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    waiting = [name for name in modules if name.startswith("ascend_m1.mindspore")]
    waiting += ["ascend_m1.cli.mindspore", "ascend_m1.cli.mindir", "ascend_m1.cli.checkpoint"]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in reached or name == "ascend_m1":
            continue
        reached.add(name)
        waiting += _own_imports(name, modules)
        for imported, at_module_level in imports(modules[name]):
            inside = name.startswith("ascend_m1.mindspore")
            foreign = imported.split(".")[0] in {"torch", "torch_npu", "ascend_m1_ops"}
            assert not (foreign and (at_module_level or inside)), f"{name}: imports {imported}"
    assert {"ascend_m1.mindspore.runner", "ascend_m1.numpy_sampling", "ascend_m1.text_stream"} - reached == set()


def _own_imports(module: str, modules: dict[str, Path]) -> set[str]:
    path, found = modules[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        base = node.module or ""
        if node.level:
            base = ".".join(filter(None, [package.rsplit(".", node.level - 1)[0], node.module]))
        for alias in node.names:
            target = f"{base}.{alias.name}"
            # Importing a name from a package's __init__ is importing the package, unless it is a submodule.
            found.add(target if target in modules else base)
    return {name for name in found if name in modules and name != module and not module.startswith(f"{name}.")}


def test_files_can_be_read_in_one_sitting() -> None:
    for folder in (*HOMES, "scripts", "tests"):
        root = ROOT / HOMES.get(folder, ".") / folder
        for path in root.rglob("*.py"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            assert lines <= MAX_LINES, f"{path.relative_to(ROOT)}: {lines} lines"


def test_model_code_names_no_device() -> None:
    for path in package_files("ascend_m1"):
        about_devices = path.name in {"device.py", "environment.py", "options.py", "plan.py"}
        if not about_devices and not {"cli", "verify"} & {*path.parts}:
            strings = {
                node.value
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert not strings & {"cuda", "npu", "cpu"}, f"{path.name}: names a device"


@pytest.mark.parametrize("module", sorted(p.relative_to(ROOT).as_posix() for p in all_files()))
def test_every_function_is_short(module: str) -> None:
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            limit = 40 if node.name == "forward" else 60
            assert lines <= limit, f"{module}: {node.name} has {lines} lines"


def test_the_wheel_installs_known_names_only(tmp_path: Path) -> None:
    """Built without network from a copy, so that no build folder appears in the source tree."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    source = tmp_path / "source"
    subprocess.run(["git", "-C", ROOT, "checkout-index", "--all", f"--prefix={source}/"], check=True)
    subprocess.run([*command, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {*HOMES, "ascend_m1_openmind.pth"}
    for package in HOMES:
        assert f"{package}/py.typed" in names
    assert "ascend_m1/checkpoints/m1_icd10/model.safetensors" in names
