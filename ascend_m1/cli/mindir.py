"""``ascend-m1 mindir``: the model as MindIR files, for MindSpore without its code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..writing import whole_folder, writing
from .options import add_model_options, note, quiet


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "mindir",
        help="export the model as MindIR",
        description="Writes prefill and decode as MindIR files with configuration and tokenizer beside them, for "
        "`ascend-m1 generate --backend mindspore --model TARGET`. The folder appears when it is whole.",
    )
    parser.add_argument("target", metavar="TARGET", help="a new directory")
    parser.add_argument(
        "--context", type=int, metavar="N", help="tokens of prompt and answer together (default: the model's context)"
    )
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """What is wrong is looked for, and the folder made, before the weights are loaded."""
    target, context = Path(arguments.target), arguments.context
    if target.exists():
        raise InputError(f"{target} exists: give a new folder")
    from .mindspore import core, prepare

    with quiet():
        checkpoint, device = prepare(arguments)
        most = checkpoint.config.max_position_embeddings
        if context is not None and not 2 <= context <= most:
            raise InputError(f"--context {context}: give 2 to {most}, the model's max_position_embeddings")

        from ..mindspore.mindir import export
        from ..mindspore.runner import chunk_lengths

        capacity = context or most
        # One prefill graph, since each carries its weights: for a longer prompt it is run again.
        chunk = chunk_lengths(capacity)[:2][-1]
        with whole_folder(target) as folder:
            model = core(checkpoint, device, capacity)
            with writing(target, folder, "or write elsewhere"):
                export(model, checkpoint.path, folder, chunk)
    note(f"{target}: written; try `ascend-m1 generate --backend mindspore --model {target} PROMPT`")
    return 0
