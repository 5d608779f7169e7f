"""The command ``ascend-m1``: one module per sub-command, and the one place where errors become a line and a status.

Status: 0 done, 1 verify-npu found something wrong or serve's engine failed, 2 a mistake in what the user gave (one line
on stderr), 130 Ctrl-C, 141 the reader of stdout went away.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, NoReturn

from ..errors import AscendM1Error, InputError
from . import chat, env, generate, mindir, plan, quantize, verify_npu

__all__ = ["main", "out_of_memory"]

COMMANDS = (generate, chat, plan, quantize, mindir, env, verify_npu)

# torch's words, and MindSpore's.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "memory not enough", "memory isn't enough",
                  "memory is not enough", "allocate memory failed")  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Reports a mistake as an exception, so that it is printed like every other: in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: see `{self.prog} --help`")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses what is not known, here and not in ``parse_args``, whose help is the whole command's."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(prog="ascend-m1", description="Baichuan-M1 on any torch device, made for Ascend NPUs.")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add_parser(commands)
    for entry in entry_points(group="ascend_m1.commands"):  # of packages that stand above this one
        entry.load()(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit status."""
    _replace_closed_streams()
    try:
        status = _run(argv)
        sys.stdout.flush()  # a closed pipe shows here, not while Python shuts down
        return status
    except AscendM1Error as error:
        return _fail(str(error))
    except BrokenPipeError:
        _silence_stdout()
        return 141
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.filename is None:  # a write to standard output
            _silence_stdout()
            return _fail(f"cannot write the output: {error.strerror}: free some space or write elsewhere")
        return _fail(f"{error.filename}: {error.strerror}: check the path and its permissions")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return _fail("torch not installed: install it; `generate --backend mindspore` and `mindir` do without")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return _fail("out of memory: use a shorter prompt, a 16-bit --dtype or a larger device; see `ascend-m1 plan`")


def _replace_closed_streams() -> None:
    """A service manager may start a program without standard streams: reading is then empty, writing goes nowhere."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as request:  # --help
        return int(request.code or 0)
    if arguments.version:
        from .. import __version__

        print(f"ascend-m1 {__version__}")
        return 0
    if not hasattr(arguments, "run"):
        parser.error("no command given")
    status: int = arguments.run(arguments)
    return status


def _fail(message: str) -> int:
    print(f"ascend-m1: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an exception tells of."""
    # torch.OutOfMemoryError is a RuntimeError; the CPU's allocator raises a plain one.
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY)


def _silence_stdout() -> None:
    """Let Python's last flush go nowhere instead of failing."""
    with contextlib.suppress(OSError, ValueError):  # stdout is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
