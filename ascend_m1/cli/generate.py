"""``ascend-m1 generate``: answer one prompt."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
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
    from ..sampling import SamplingOptions
    from .checkpoint import Checkpoint


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "generate",
        help="answer one prompt",
        description="Answer one prompt: the argument, a file, or standard input. Text appears as it is generated.",
    )
    parser.add_argument("prompt", nargs="?", help="the prompt; -: read standard input")
    parser.add_argument("--file", metavar="F", help="read the prompt from this UTF-8 file, all of it")
    parser.add_argument("--system", metavar="TEXT", help="system message of the chat format")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat format")
    parser.add_argument(
        "--backend", choices=("torch", "mindspore"), default="torch", help="what runs the model (default: torch)"
    )
    add_model_options(parser)
    add_adapter_option(parser)
    add_sampling_options(parser, beams=True)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Everything that can be wrong is looked at before the weights are loaded."""
    prompt = read_prompt(arguments.prompt, arguments.file)
    if not prompt.strip():
        raise InputError("the prompt is empty: give some text")
    if arguments.raw and arguments.system is not None:
        raise InputError("--system belongs to the chat format and --raw leaves it out: give one of them")
    options = sampling_options(arguments)
    if arguments.backend == "mindspore":
        from .mindspore import generate

        generate(arguments, prompt, options)
    else:
        _with_torch(arguments, prompt, options)
    write("\n")
    return 0


def _with_torch(arguments: argparse.Namespace, prompt: str, options: SamplingOptions) -> None:
    from ..device import choose_device, choose_dtype
    from ..generation import generate_text
    from .checkpoint import open_checkpoint
    from .loading import load_model

    with quiet():
        device = choose_device(arguments.device)
        directory, adapter = model_and_adapter(arguments)
        checkpoint = open_checkpoint(directory)
        choose_dtype(arguments.dtype, device, checkpoint.config.dtype)
        ids = prompt_ids(arguments, prompt, checkpoint, options)
        model = load_model(checkpoint, device, arguments.dtype, adapter)
        generate_text(model, checkpoint.tokenizer, ids, options, write)


def prompt_ids(
    arguments: argparse.Namespace, prompt: str, checkpoint: Checkpoint, options: SamplingOptions
) -> list[int]:
    """The prompt as tokens; tells if the context leaves less room than is asked for. Raises InputError: it has none."""
    from ..prompts import chat_ids, chat_text, plain_ids, room_for

    if arguments.raw:
        ids = plain_ids(checkpoint.tokenizer, prompt)
    else:
        system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
        text = chat_text(checkpoint.tokenizer, [*system, {"role": "user", "content": prompt}])
        ids = chat_ids(checkpoint.tokenizer, text)
    room = room_for(checkpoint.config, len(ids))
    if options.max_new_tokens is not None and options.max_new_tokens > room:
        context = checkpoint.config.max_position_embeddings
        note(f"at most {room} new tokens: the prompt takes {len(ids)} of the context's {context}")
    return ids


def read_prompt(argument: str | None, file: str | None) -> str:
    """The prompt's text; one line end at the end of a file or of standard input is not part of it.

    Raises:
        InputError: two prompts or none, or a source that cannot be read as UTF-8.
    """
    if file is not None:
        if argument is not None:
            raise InputError("two prompts, an argument and --file: give one of them")
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise InputError(f"prompt file {file}: {error.strerror}: give a readable text file") from None
        return _without_line_end(decode(data, f"prompt file {file}"))
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise InputError("no prompt: give it as an argument, with --file or on standard input")
    return _without_line_end(decode(sys.stdin.buffer.read(), "standard input"))


def _without_line_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
