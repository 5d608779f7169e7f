"""python -m ascend_m1_hostnpu [options] (SCRIPT | -m MODULE | -c CODE) [arguments]

Runs a program that knows nothing of the host NPU on it, with everything it starts.

options:
  --product NAME   the product to stand for: 910B (default), A3, 310P, 950
  --devices N      how many NPUs a process sees (default 1)
  --launches       print what was launched, by name, when a process ends
  --list           print the operators that have a stand-in, and stop
  -h, --help       print this, and stop

It needs torch and torch-npu of the same version, gcc and binutils, and sets variables that docs/hostnpu.md lists.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from .build import libraries
from .products import SOC
from .settings import SettingError, check

_SITE = Path(__file__).with_name("site")


def _refuse(message: str) -> NoReturn:
    print(f"ascend_m1_hostnpu: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options in front of the program -> environment variables, and the program with its arguments."""
    variables: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] not in ("-m", "-c", "-"):
        option, equals, value = rest.pop(0).partition("=")
        if option in ("--product", "--devices") and not equals:
            value = rest.pop(0) if rest else ""
        if option == "--product":
            if value not in SOC:
                _refuse(f"--product {value}: use one of {', '.join(SOC)}")
            variables["HOSTNPU_PRODUCT"] = value
        elif option == "--devices":
            if not value.isdecimal() or int(value) < 1:
                _refuse(f"--devices {value}: give a number of at least 1")
            variables["HOSTNPU_DEVICES"] = value
        elif option == "--launches":
            variables["HOSTNPU_LAUNCHES"] = "1"
        elif option == "--list":
            _require()
            _list()
        elif option in ("-h", "--help"):
            print(__doc__)
            raise SystemExit(0)
        else:
            _refuse(f"{option}: no such option; --help lists them")
    if not rest or (rest[0] in ("-m", "-c") and len(rest) == 1):
        _refuse("nothing to run: give a script, -m MODULE or -c CODE")
    if rest[0] not in ("-m", "-c", "-") and not Path(rest[0]).exists():
        _refuse(f"{rest[0]}: no such file")
    return variables, rest


def _require() -> None:
    """Refuse to start what could not load the stand-ins; they are built here if they were not."""
    try:
        check(os.environ)
        libraries()
    except (SettingError, RuntimeError) as error:
        _refuse(str(error))


def _list() -> NoReturn:
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    from . import loading  # noqa: F401
    from .abi import OPERATOR_SYMBOLS
    from .operator import names
    from .symbols import HCCL, HCCL_MISSING

    known = sum(not symbol.endswith("WorkspaceSize") for symbol in OPERATOR_SYMBOLS)
    print("\n".join([*sorted(f"aclnn{name}" for name in names), *sorted(HCCL)]))
    print(f"{len(names)} of the {known} operators that this torch-npu knows; not of HCCL: {', '.join(HCCL_MISSING)}")
    raise SystemExit(0)


def main() -> NoReturn:
    """Become the Python that runs the program, so that its arguments, exit status and children are its own."""
    variables, program = parse(sys.argv[1:])
    os.environ.update(variables)
    _require()
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(_SITE), *([inherited] if inherited else [])])
    environment = {**os.environ, "PYTHONPATH": path, "HOSTNPU_SITE": str(_SITE)}
    environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    os.execve(sys.executable, [sys.executable, *flags, *program], environment)


if __name__ == "__main__":
    main()
