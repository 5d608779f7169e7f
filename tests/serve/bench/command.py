"""``bench serve`` on a command line of its own; as a program, too, for what needs a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ascend_m1.cli import Parser
from ascend_m1_serve.bench.cli import add_parser


def run(argv: Sequence[str]) -> int:
    """The status. Raises InputError and its like, which the whole command line prints."""
    parser = Parser(prog="ascend-m1")
    add_parser(parser.add_subparsers(parser_class=Parser))
    arguments = parser.parse_args(["bench", "serve", *argv])
    status: int = arguments.run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
