"""Which engine serves: the one place where engine, device and graph are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_m1.cli.loading import Checkpoint, load_model, open_checkpoint
from ascend_m1.device import choose_device, choose_dtype
from ascend_m1.errors import InputError
from ascend_m1.inference import InferenceModel
from ascend_m1.weights import read_json

from .engine.core import Core, EngineOptions, make_core
from .front import Defaults

DEFAULT_LENGTH = 8192


@dataclass(frozen=True)
class Wanted:
    """What an engine is to be made of.

    Attributes:
        model: checkpoint folder. device, dtype: by name, see ``ascend_m1.device``.
        max_length: tokens of the longest sequence; None: the checkpoint's context, at most ``DEFAULT_LENGTH``.
        max_sequences: at the same time. blocks: of the cache; None: for all of them at their longest.
        adapters: PEFT folders by name. max_adapters: loaded at the same time; None: as many as these.
    """

    model: Path
    device: str = "auto"
    dtype: str = "auto"
    max_length: int | None = None
    max_sequences: int = 16
    blocks: int | None = None
    chunk: int = 512
    prefix_caching: bool = True
    graph: str | None = None
    adapters: dict[str, Path] | None = None
    max_adapters: int | None = None


@dataclass(frozen=True)
class BuiltIn:
    """Everything but the thread, which needs an event loop.

    Attributes:
        defaults: of the checkpoint's generation_config.json.
    """

    core: Core
    tokenizer: Any
    defaults: Defaults


def built_in(wanted: Wanted) -> BuiltIn:
    """Load the model into the built-in engine.

    Raises:
        AscendM1Error: one line that says what cannot be used.
    """
    device = choose_device(wanted.device)
    checkpoint = open_checkpoint(str(wanted.model))
    choose_dtype(wanted.dtype, device, checkpoint.config.dtype)
    options = _options(wanted, checkpoint)
    model = load_model(checkpoint, device, wanted.dtype)
    defaults = Defaults.of(model.generation_config)
    return BuiltIn(make_core(InferenceModel(model, options.max_length), options), checkpoint.tokenizer, defaults)


def _options(wanted: Wanted, checkpoint: Checkpoint) -> EngineOptions:
    context = checkpoint.config.max_position_embeddings
    length = min(context, DEFAULT_LENGTH) if wanted.max_length is None else wanted.max_length
    if length > context:
        raise InputError(f"max_length={length}: the checkpoint's context is {context}: give at most that")
    adapters = wanted.adapters or {}
    count = len(adapters) if wanted.max_adapters is None else wanted.max_adapters
    if count < len(adapters):
        raise InputError(f"max_adapters={count}: {len(adapters)} are to be loaded at the start: give at least that")
    ranks = [_rank(folder) for folder in adapters.values()]
    return EngineOptions(
        max_length=length,
        max_sequences=wanted.max_sequences,
        blocks=wanted.blocks,
        chunk=wanted.chunk,
        prefix_caching=wanted.prefix_caching,
        graph=wanted.graph,
        adapters=count,
        adapter_rank=max([EngineOptions.adapter_rank, *ranks]),
    )


def _rank(folder: Path) -> int:
    """Of an adapter; 1 if it does not say, which loading will refuse."""
    rank = read_json(folder / "adapter_config.json").get("r")
    return rank if isinstance(rank, int) and 0 < rank < 2**16 else 1
