"""One distribution from several folders: each named package lives beside its non-Python assets."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HOMES = {
    "ascend_m1": ".",
    "ascend_m1_ops": "ops",
    "ascend_m1_hostnpu": "ops",
    "ascend_m1_finetune": "finetune",
    "ascend_m1_openmind": "finetune",
    "ascend_m1_serve": "serve",
    "ascend_m1_vllm": "serve",
}

# Imported at Python's start, by a line of a file that must lie beside the packages.
AT_START = "ascend_m1_openmind"


class BuildWithStart(build_py):
    """setuptools has no word for such a file."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            Path(self.build_lib, f"{AT_START}.pth").write_text(f"import {AT_START}\n", encoding="utf-8")


packages: list[str] = []
package_dir: dict[str, str] = {}
for name, home in HOMES.items():
    packages += find_packages(home, include=[name, f"{name}.*"])
    package_dir[name] = (Path(home) / name).as_posix()

setup(
    cmdclass={"build_py": BuildWithStart},
    packages=packages,
    package_dir=package_dir,
    package_data={
        "": ["py.typed"],
        "ascend_m1_hostnpu": ["*.c", "site/*.py", "pyacl/acl/*.py"],
        "ascend_m1_ops": ["lowering.json", "native/*.cpp", "native/vectors.h"],
        "ascend_m1": ["checkpoints/*/*"],
        "ascend_m1_serve": ["api/page.html"],
    },
)
