"""What ``generate`` and ``mindir`` do with MindSpore in place of torch."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..prompts import room_for
from ..sampling import SamplingOptions
from .checkpoint import Checkpoint, generation_defaults, is_quantised, open_checkpoint
from .options import EMBEDDED, note, quiet, require_extra, write

if TYPE_CHECKING:
    from ..mindspore.device import Device
    from ..mindspore.model import Core
    from ..mindspore.runner import Graphs


def generate(arguments: argparse.Namespace, prompt: str, options: SamplingOptions) -> None:
    """Answer a prompt. Raises AscendM1Error: something cannot be used, or is not for this back end."""
    if arguments.adapter is not None:
        raise InputError("--adapter: --backend mindspore takes none: merge it first, with `ascend-m1 export`")
    if options.num_beams != 1:
        raise InputError(f"--num-beams {options.num_beams}: --backend mindspore has no beam search: leave it out")
    from .generate import prompt_ids

    with quiet():
        checkpoint, device = prepare(arguments)
        ids = prompt_ids(arguments, prompt, checkpoint, options)
        room, end = room_for(checkpoint.config, len(ids)), checkpoint.tokenizer.eos_token_id
        config = options.resolve(generation_defaults(checkpoint), room, end)
        graphs = _graphs(checkpoint, device, len(ids) + config.max_new_tokens)

        from ..mindspore.runner import generate_text

        generate_text(graphs, checkpoint.tokenizer, ids, config, options.seed, write)


def prepare(arguments: argparse.Namespace) -> tuple[Checkpoint, Device]:
    """The checkpoint without its weights, and the device, which becomes MindSpore's."""
    require_extra("mindspore", ("mindspore",))
    os.environ.setdefault("GLOG_v", "3")  # its C++ warnings about shapes are not for users
    checkpoint = open_checkpoint(arguments.model or str(EMBEDDED))
    if is_quantised(checkpoint):
        raise InputError(f"{checkpoint.path} is quantised: --backend mindspore takes the plain checkpoint")

    from ..mindspore.device import choose

    device = choose(arguments.device, arguments.dtype, checkpoint.config.dtype)
    if device.reason is not None:
        note(device.reason)
    return checkpoint, device


def core(checkpoint: Checkpoint, device: Device, capacity: int) -> Core:
    """The model with its weights, for sequences of so many tokens."""
    from ..mindspore.model import Core
    from ..mindspore.weights import Weights

    weights = Weights(checkpoint.path, checkpoint.config)
    return Core(checkpoint.config, weights, capacity, device.mindspore_dtype, device.fused)


def _graphs(checkpoint: Checkpoint, device: Device, tokens: int) -> Graphs:
    """Of a folder that ``mindir`` wrote, or compiled."""
    from ..mindspore.mindir import MANIFEST, load
    from ..mindspore.runner import capacity_for

    if (Path(checkpoint.path) / MANIFEST).is_file():
        return load(checkpoint.path, device)

    from ..mindspore.model import graphs

    capacity = capacity_for(checkpoint.config.max_position_embeddings, tokens)
    return graphs(core(checkpoint, device, capacity), device.dtype)
