"""Builds stand-ins for the CANN libraries that the installed torch-npu wheel links to, from its own symbol tables.

libascendcl holds the runtime (runtime.c), jump slots for the calls that Python answers, and a harmless stub for every
other symbol; libopapi holds one jump slot per operator-API function (aclnn*). Their sonames are those that torch_npu
asks for, so loading them first is enough. The result is cached per wheel and per source.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from .symbols import HCCL, HCCL_MISSING, STREAMS

RUNTIME = Path(__file__).with_name("runtime.c")
SOURCES = (RUNTIME, Path(__file__), Path(__file__).with_name("symbols.py"))
# torch_npu looks symbols up through each of these; all lead to libascendcl.
ALIASES = (
    "nnopbase",
    "hccl",
    "hcomm",
    "acl_op_compiler",
    "ge_runner",
    "graph",
    "fmk_parser",
    "acl_tdt_channel",
    "ascend_protobuf",
)
PYTHON_RUNTIME = [*STREAMS, *HCCL, *HCCL_MISSING]
SYSTEM = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2")
OPERATORS = "operators.txt"


def libraries() -> Path:
    """The folder with the built libraries, made on first use.

    Raises:
        RuntimeError: torch-npu, gcc or binutils is missing, or the processor is not x86-64.
    """
    torch_npu = _package("torch_npu")
    version = importlib.metadata.version("torch-npu")
    stamp = f"{version} {(torch_npu / 'lib/libtorch_npu.so').stat().st_size}".encode()
    key = hashlib.sha256(stamp + b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ascend-m1" / "hostnpu"
    folder = cache / f"torch-npu-{version}-{key}"
    if not folder.is_dir():
        _check_tools()
        cache.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache))
        try:
            _build(work, torch_npu, _package("torch"))
            if not folder.is_dir():  # another process may have been quicker
                work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{name} is not installed: install torch and torch-npu of the same version")
    return Path(spec.origin).parent


def _check_tools() -> None:
    if platform.machine() != "x86_64":
        raise RuntimeError(f"the host NPU is built for x86-64 only, not {platform.machine()}: use an x86-64 machine")
    for tool, package in (("gcc", "gcc"), ("nm", "binutils")):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is not installed: install {package} and try again")


def _symbols(path: Path, flag: str) -> set[str]:
    lines = subprocess.run(["nm", "-D", flag, path], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if flag == "--defined-only" or " U " in line}


def _build(out: Path, torch_npu: Path, torch: Path) -> None:
    wheel = sorted(torch_npu.rglob("*.so"))
    system = [Path("/usr/lib/x86_64-linux-gnu", name) for name in SYSTEM]
    defined = set().union(*(_symbols(p, "--defined-only") for p in [*wheel, *torch.glob("lib/*.so*"), *system]))
    linked = set().union(*(_symbols(p, "--undefined-only") for p in wheel if "atb" not in p.name)) - defined
    text = (torch_npu / "lib/libtorch_npu.so").read_bytes()
    named = {s.decode() for s in re.findall(rb"\b(?:acl|Hccl|rt|Msprof)[A-Za-z0-9]{3,}(?=\0)", text)}
    operators = sorted(s for s in named if s.startswith("aclnn"))
    looked_up = {s for s in named if re.match(r"(acl(rt|mdl|op|prof|sys|tdt)?[A-Z]|Hccl[A-Z]|rt[A-Z])", s)}
    written = set(re.findall(r"^[\w ]+[ *](\w+)\(", RUNTIME.read_text(), re.MULTILINE))
    stubs = (linked | looked_up) - set(operators) - written - set(PYTHON_RUNTIME)
    stubs = {s for s in stubs if not s.startswith(("Py", "_Py", "__", "_ITM"))}
    _compile(out, "ascendcl", RUNTIME.read_text() + _stubs(stubs), _slots(PYTHON_RUNTIME))
    _compile(out, "opapi", "", _slots(operators), "libascendcl.so")  # objects are looked up through it
    for alias in ALIASES:
        _compile(out, alias, "", "", "libascendcl.so")
    atb = {s for s in _symbols(torch_npu / "lib/libop_plugin_atb.so", "--undefined-only") if "3atb" in s}
    _compile(out, "atb", _stubs({s for s in atb if not s.startswith("_ZTH")}), "")
    (out / OPERATORS).write_text("\n".join(operators))


def _stubs(names: set[str]) -> str:
    return "".join(f"long {name}(void) {{ return 0; }}\n" for name in sorted(names))


def _slots(names: list[str]) -> str:
    """Assembly: each function jumps to the address in its slot and leaves every register as the caller set it."""
    jumps = "".join(
        f".globl {n}\n.type {n},@function\n{n}: movq slot_{n}@GOTPCREL(%rip),%r11\n jmp *(%r11)\n" for n in names
    )
    slots = "".join(f".globl slot_{n}\nslot_{n}: .quad 0\n" for n in names)
    return f".text\n{jumps}.data\n{slots}" + '.section .note.GNU-stack,"",@progbits\n'


def _compile(out: Path, name: str, source: str, assembly: str, *libraries: str) -> None:
    (out / f"{name}.c").write_text(source)
    (out / f"{name}_slots.s").write_text(assembly)
    flags = ["-O2", "-w", "-shared", "-fPIC", "-Wl,--no-as-needed", f"-Wl,-soname,lib{name}.so"]
    inputs = [f"{name}.c", f"{name}_slots.s", *libraries]
    result = subprocess.run(["gcc", *flags, "-o", f"lib{name}.so", *inputs], cwd=out, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"gcc could not build lib{name}.so: {result.stderr.strip().splitlines()[0]}")
