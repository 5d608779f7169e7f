"""One distribution from several folders: each named package lives beside its non-Python assets."""

from pathlib import Path

from setuptools import find_packages, setup

HOMES = {
    "ascend_m1": ".",
    "ascend_m1_ops": "ops",
    "ascend_m1_hostnpu": "ops",
    "ascend_m1_finetune": "finetune",
    "ascend_m1_serve": "serve",
    "ascend_m1_vllm": "serve",
}

packages: list[str] = []
package_dir: dict[str, str] = {}
for name, home in HOMES.items():
    packages += find_packages(home, include=[name, f"{name}.*"])
    package_dir[name] = (Path(home) / name).as_posix()

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "": ["py.typed"],
        "ascend_m1_hostnpu": ["*.c", "site/*.py", "pyacl/acl/*.py"],
        "ascend_m1_ops": ["lowering.json", "quant_linear/int4.cpp"],
        "ascend_m1": ["checkpoints/*/*"],
        "ascend_m1_serve": ["api/page.html"],
    },
)
