"""Placeholders for CUDA's libraries, so that a CUDA build of torch 2.1 loads without gigabytes that no CPU calls.

    /path/to/environment/bin/python scripts/cuda_placeholders.py

PyPI has torch 2.1.0 for Linux x86_64 with CUDA alone, and its libraries are linked to these. Each placeholder has the
functions that torch names, which abort the process. The CUDA runtime stays the real one: torch asks it for devices.
Does nothing in a CPU build of torch. Needs cc and nm.
"""

from __future__ import annotations

import subprocess
import tempfile
from importlib.metadata import distribution
from pathlib import Path

# A library, and the beginning of its functions' names.
LIBRARIES = {
    "libcublas.so.12": "cublas",
    "libcublasLt.so.12": "cublasLt",
    "libcudnn.so.8": "cudnn",
    "libcufft.so.11": "cufft",
    "libcurand.so.10": "curand",
    "libcusparse.so.12": "cusparse",
    "libnccl.so.2": "nccl",
}
# C: each function says its name and aborts.
ABORT = """\
#include <stdio.h>
#include <stdlib.h>
#define F(name) void name(void) { fputs(#name " is a placeholder\\n", stderr); abort(); }
"""


def wanted(library: Path) -> dict[str, str]:
    """The functions that a library leaves to others, and the version that it asks of each, or ""."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    pairs = (line.split()[-1].partition("@") for line in listed.stdout.splitlines())
    return {name: version for name, _, version in pairs}


def write_placeholder(path: Path, functions: dict[str, str]) -> None:
    """Compile them into a shared library of this name."""
    versions = {version for version in functions.values() if version}
    script = "".join(f"{version} {{ global: *; }};\n" for version in versions) or "{ global: *; };\n"
    with tempfile.TemporaryDirectory() as folder:
        source, symbols = Path(folder, "placeholder.c"), Path(folder, "symbols")
        source.write_text(ABORT + "".join(f"F({name})\n" for name in sorted(functions)))
        symbols.write_text(script)
        linking = [f"-Wl,-soname,{path.name}", f"-Wl,--version-script,{symbols}"]
        subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source, *linking], check=True)


def main() -> None:
    site = Path(distribution("torch").locate_file(""))
    libraries = site / "torch/lib"
    if not (libraries / "libtorch_cuda.so").exists():
        return
    names: dict[str, str] = {}
    for library in ("libtorch_cuda.so", "libtorch_python.so"):
        names |= wanted(libraries / library)
    folder = site / "nvidia/cublas/lib"  # one of those where torch looks
    folder.mkdir(parents=True, exist_ok=True)
    for library, beginning in LIBRARIES.items():
        longer = [other for other in LIBRARIES.values() if other != beginning and other.startswith(beginning)]
        mine = {
            name: version
            for name, version in names.items()
            if name.startswith(beginning) and not name.startswith(tuple(longer))
        }
        write_placeholder(folder / library, mine)


if __name__ == "__main__":
    main()
