"""``ascend-m1 verify-npu``: which operator of the NPU path is accepted, right, lowered and captured, by product."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .options import note, quiet, write


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "verify-npu",
        help="every step of the NPU path, product by product",
        description="Runs every operator that the NPU path calls, and whole decode steps through every graph route: on "
        "the machine's NPU, or through torch-npu on a host stand-in for CANN, which takes about a minute and is "
        "started as `python -m ascend_m1_hostnpu -m ascend_m1 verify-npu`. Exit status 1: something failed.",
    )
    parser.add_argument(
        "--product",
        action="append",
        metavar="NAME",
        help="A2 (910B), A3 (910_93), 310P or 950; may be repeated (default: all on the host NPU, else the machine's "
        "own). Each is probed as itself, whatever --product says in front, to `python -m ascend_m1_hostnpu`, which "
        "knows 910B, A3, 310P and 950",
    )
    parser.add_argument("--json", action="store_true", help="for machines, with every call")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Verify and print; 1 if something was refused, wrong or not captured."""
    from ..verify.report import summary, table
    from ..verify.run import verify

    with quiet():
        report = summary(verify(arguments.product or [], note))
    write(json.dumps(report, indent=2) + "\n" if arguments.json else table(report))
    return 1 if report["problems"] else 0
