"""From a Triton kernel to what the NPU's compilers make of it, without an NPU.

triton-ascend lowers the kernel to MLIR (linalg on tensors); AscendNPU-IR's ``bishengir-compile`` takes that to HIVM,
its instruction level, with addresses in on-chip memory and synchronisation. The last step, the closed assembler
``hivmc``, is replaced by a script that writes a placeholder, so no device code exists.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ascendnpuir
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

BIN = Path(ascendnpuir.__file__).parent / "bin"
TARGETS = ("Ascend910B1", "Ascend910B2", "Ascend910B3", "Ascend910B4", "Ascend910_9391")
_OPTIONS = (
    "--enable-hfusion-compile=true",
    "--enable-hivm-compile=true",
    "--enable-triton-kernel-compile=true",
    "--enable-auto-multi-buffer=true",
)
# Answers the version question and leaves an empty object where the compiler looks for one.
_ASSEMBLER = """#!/bin/sh
[ "$1" = --version ] && { echo "hivmc 1.2.0"; exit 0; }
for argument; do [ "$previous" = -o ] && : > "$argument.o"; previous="$argument"; done
"""
_BYTES = {"i1": 1, "i8": 1, "i16": 2, "f16": 2, "bf16": 2, "i32": 4, "f32": 4, "i64": 8}


@dataclass(frozen=True)
class Lowered:
    """A kernel as linalg-level MLIR, still the same for every target."""

    name: str
    text: str

    def stored_shapes(self) -> list[tuple[int, ...]]:
        """Shape of every store to memory, () for a single element."""
        tensors = re.findall(r"materialize_in_destination.*: \(tensor<([0-9x]*?)x?[a-z]+[0-9]+>", self.text)
        shapes = [tuple(int(size) for size in shape.split("x") if size) for shape in tensors]
        return shapes + [()] * len(re.findall(r"\bmemref\.store\b", self.text))


@dataclass(frozen=True)
class Accepted:
    """What the compiler of one target made of a kernel; ``hivm`` is empty if it refused."""

    status: int
    messages: str
    hivm: str

    def limit(self, name: str) -> int:
        """A number of the target's description, such as VECTOR_CORE_COUNT or UB_SIZE (in bits)."""
        return int(re.findall(rf'"{name}", (\d+) : i32', self.hivm)[0])

    def on_chip_bytes(self) -> int:
        """The end of the last buffer in the vector core's memory."""
        ends = [0]
        for arguments, shape in re.findall(
            r"pointer_cast\(([^)]*)\) .*?memref<([^,>]*), #hivm.address_space<ub>>", self.hivm
        ):
            *sizes, kind = shape.split("x")
            size = math.prod(map(int, sizes)) * _BYTES[kind]
            ends += [int(address) + size for address in re.findall(r"%c(\d+)_i64", arguments)]
        return max(ends)

    def calls(self) -> list[str]:
        """The vector and copy routines it calls, in order."""
        return re.findall(r"call @(\w+)", self.hivm)


def lower(kernel: Any, signature: Mapping[str, str], constants: Mapping[str, int]) -> Lowered:
    """A Triton function through triton-ascend's front end, as ``kernel[grid](…)`` would do it on an NPU.

    Args:
        kernel: decorated with ``triton.jit``.
        signature: type of each parameter, ``"*bf16"``, ``"i32"``; in order.
        constants: values of its ``tl.constexpr`` parameters.

    Raises:
        subprocess.CalledProcessError: the front end fails; its messages are in ``stderr``.
    """
    target = GPUTarget("npu", TARGETS[0], 0)
    backend = make_backend(target)
    options = backend.parse_options({})
    context = ir.context()
    ir.load_dialects(context)
    source = ASTSource(fn=kernel, signature=dict(signature), constants=dict(constants))
    module = source.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
    metadata = {"target": target, **options.__dict__, "hash": "unused"}
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options)
    text = stages["ttadapter"](stages["ttir"](module, metadata), metadata)
    return Lowered(kernel.__name__, text)


def accept(lowered: Lowered, target: str) -> Accepted:
    """The lowered kernel through BiShengIR for one target."""
    with tempfile.TemporaryDirectory() as folder:
        assembler, source, stages = Path(folder, "hivmc"), Path(folder, "kernel.mlir"), Path(folder, "stages")
        assembler.write_text(_ASSEMBLER)
        assembler.chmod(0o700)
        source.write_text(lowered.text.replace(', mix_mode = "aiv"', ""))
        stages.mkdir()
        files: Sequence[str] = (str(source), f"--save-temps={stages}", "-o", str(Path(folder, "kernel")))
        run = subprocess.run(
            [BIN / "bishengir-compile", *files, f"--target={target}", *_OPTIONS],
            capture_output=True,
            text=True,
            env={"PATH": f"{folder}{os.pathsep}{os.defpath}"},
        )
        result = stages / "module.hivm.opt.mlir"
        hivm = result.read_text() if run.returncode == 0 else ""
        return Accepted(run.returncode, run.stdout + run.stderr, hivm)
