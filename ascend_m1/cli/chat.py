"""``ascend-m1 chat``: a conversation in the terminal, or with lines from a pipe."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .options import (
    add_adapter_option,
    add_model_options,
    add_sampling_options,
    decode,
    model_and_adapter,
    note,
    quiet,
    sampling_options,
    write,
)

if TYPE_CHECKING:
    from ..conversation import Conversation

HELP = "/reset begins anew, /exit (or end of input) leaves, Ctrl-C stops the answer"


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "chat",
        help="hold a conversation",
        description=f"Hold a conversation, one message a line. {HELP}. A line from a pipe that cannot be answered, an "
        "unknown /word included, is reported, the rest is answered, and the exit status is 2.",
    )
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_model_options(parser)
    add_adapter_option(parser)
    add_sampling_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load the model, then answer line after line."""
    options = sampling_options(arguments)

    from ..conversation import Conversation
    from ..device import choose_device, choose_dtype
    from .checkpoint import open_checkpoint
    from .loading import load_model

    with quiet():
        device = choose_device(arguments.device)
        directory, adapter = model_and_adapter(arguments)
        checkpoint = open_checkpoint(directory)
        choose_dtype(arguments.dtype, device, checkpoint.config.dtype)
        model = load_model(checkpoint, device, arguments.dtype, adapter)
        return converse(Conversation(model, checkpoint.tokenizer, options, arguments.system))


def converse(conversation: Conversation) -> int:
    """Answer until the input ends. A line that cannot be answered is reported; from a pipe it makes the status 2."""
    interactive = sys.stdin.isatty()
    status = 0
    if interactive:
        note(HELP)
    for line in _terminal_lines() if interactive else _piped_lines():
        if line == "/exit":
            break
        if line == "/reset":
            conversation.reset()
            continue
        try:
            if line.startswith("/") and " " not in line:
                raise InputError(f"{line}: no such command: /reset or /exit")
            conversation.answer(line, write)
        except InputError as error:
            note(f"error: {error}; /reset begins anew" if "context" in str(error) else f"error: {error}")
            status = status if interactive else 2
            continue
        except KeyboardInterrupt:
            pass
        write("\n")
    return status


def _terminal_lines() -> Iterator[str]:
    """Lines typed at a prompt; Ctrl-C clears the line."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            write("\n")
            return
        except KeyboardInterrupt:
            write("\n")
            continue
        if line:
            yield line


def _piped_lines() -> Iterator[str]:
    for number, data in enumerate(sys.stdin.buffer, start=1):
        line = decode(data, f"standard input, line {number}").strip()
        if line:
            yield line
