"""``ascend-m1 export``: an adapter merged into its base."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ascend_m1.cli.options import adapter_base, note, quiet, require_extra
from ascend_m1.errors import InputError


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "export",
        help="merge an adapter into its base",
        description="Writes a checkpoint in the published format: the base with the adapter merged into its weights, "
        "after a comparison of the logits. The folder appears when it is whole.",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder of PEFT's, as `ascend-m1 train` writes it")
    parser.add_argument("target", metavar="TARGET", help="a new directory")
    parser.add_argument(
        "--model", metavar="DIR", help="the base, plain or quantised (default: the one that the adapter names)"
    )
    parser.add_argument(
        "--dtype", default="auto", help="of the result: float32, bfloat16, float16, or auto: the base's (default: auto)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Folders are looked at before anything is loaded."""
    require_extra("finetune", ("peft",))
    from ascend_m1.cli.checkpoint import read_config
    from ascend_m1.device import DTYPES

    from .export import export

    if arguments.dtype not in ("auto", *DTYPES):
        raise InputError(f"--dtype {arguments.dtype}: give auto, {', '.join(DTYPES)}")
    adapter, target = Path(arguments.adapter), Path(arguments.target)
    named = arguments.model or adapter_base(adapter)
    if not named:
        raise InputError(f"{adapter / 'adapter_config.json'}: names no base: give --model")
    read_config(named)
    with quiet():
        merged = export(Path(named), adapter, target, note, DTYPES.get(arguments.dtype))
    note(
        f"{target}: written; the adapter changes the logits by {merged.effect:.2%}, merged they differ by "
        f"{merged.error:.2%} from that, for the weights are rounded (refused is more than {merged.tolerance:.2%}, or "
        "than half the change)"
    )
    return 0
