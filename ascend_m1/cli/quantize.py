"""``ascend-m1 quantize``: a checkpoint with weights of 8 or 4 bits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import EMBEDDED, add_scheme_options, note


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "quantize",
        help="write a checkpoint with weights of 8 or 4 bits",
        description="Writes the layers' matrices as whole numbers and scales, in compressed-tensors' format, for "
        "`ascend-m1` serve, generate and chat. Embedding, head, norms and filters stay. It holds one shard at a time; "
        "interrupted, the same command goes on.",
    )
    parser.add_argument("source", metavar="SOURCE", help="checkpoint directory, or m1-icd10 for the embedded one")
    parser.add_argument("target", metavar="TARGET", help="a new directory")
    add_scheme_options(parser, bits=4)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Source and options are looked at before anything is written."""
    from ..quantization.scheme import Scheme
    from ..quantization.write import quantise_checkpoint
    from .checkpoint import read_config

    scheme = Scheme.of(arguments.bits, arguments.group_size)
    source = EMBEDDED if arguments.source == "m1-icd10" else Path(arguments.source)
    read_config(str(source))
    quantise_checkpoint(source, Path(arguments.target), scheme, lambda done, all: note(f"{done} of {all} shards"))
    note(f"{arguments.target}: written; serve it with `ascend-m1 serve --model {arguments.target}`")
    return 0
