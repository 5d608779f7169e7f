"""Which engine serves: the one place where engine, device and graph are chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from transformers import GenerationConfig

from ascend_m1.checkpoint_files import read_adapter_config, read_json
from ascend_m1.cli.checkpoint import Checkpoint, is_quantised, open_checkpoint
from ascend_m1.cli.loading import load_model, load_quantised
from ascend_m1.device import choose_device, choose_dtype
from ascend_m1.errors import InputError
from ascend_m1.inference import InferenceModel

from .engine.core import Core, EngineOptions, make_core
from .engine.service import BuiltInEngine
from .engine.size import GIB, blocks_within, check_size, limit_product_caches
from .front import Defaults
from .protocol import Engine

DEFAULT_LENGTH = 8192


@dataclass(frozen=True)
class Wanted:
    """What an engine is to be made of.

    Attributes:
        model: checkpoint folder. device, dtype: by name, see ``ascend_m1.device``.
        max_length: tokens of the longest sequence; None: the checkpoint's context, at most ``DEFAULT_LENGTH``.
        max_sequences: at the same time.
        kv_cache_gib: of a device's memory for the cache; None: for all sequences at their longest; vLLM: its choice.
        chunk: tokens of prompts in a step.
        adapters: PEFT folders by name. max_adapters: loaded at the same time; None: as many as these.
        max_adapter_rank: None: the largest of these, at least 16.
        tensor_parallel, pipeline_parallel, devices, memory_fraction: for vLLM; the built-in engine runs on one device
            and takes what it needs.
    """

    model: Path
    device: str = "auto"
    dtype: str = "auto"
    max_length: int | None = None
    max_sequences: int = 16
    kv_cache_gib: float | None = None
    chunk: int = 512
    adapters: dict[str, Path] | None = None
    max_adapters: int | None = None
    max_adapter_rank: int | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    devices: tuple[int, ...] = ()
    memory_fraction: float | None = None


class Prepared(Protocol):
    """An engine but for what needs an event loop.

    Attributes:
        tokenizer: of the checkpoint. defaults: of its generation_config.json.
    """

    tokenizer: Any
    defaults: Defaults

    def start(self) -> Engine:
        """In the event loop's thread."""


@dataclass
class BuiltIn:
    """The built-in engine, its model loaded."""

    core: Core
    tokenizer: Any
    defaults: Defaults

    def start(self) -> Engine:
        """The engine and its thread."""
        return BuiltInEngine(self.core, self.tokenizer)


@dataclass
class Vllm:
    """vLLM's engine; ``start`` loads the model."""

    arguments: dict[str, Any]
    devices: tuple[int, ...]
    tokenizer: Any
    defaults: Defaults
    end_tokens: frozenset[int]

    def start(self) -> Engine:
        """The engine and its workers."""
        from .vllm_engine import start

        return start(self.arguments, self.devices, self.tokenizer, self.end_tokens)


def vllm(wanted: Wanted, **more: Any) -> Vllm:
    """vLLM with these options; ``more`` are arguments of its ``AsyncEngineArgs``.

    Raises:
        AscendM1Error: vLLM is not installed, or the checkpoint cannot be used.
    """
    if find_spec("vllm") is None:
        raise InputError("--engine vllm: vLLM is not installed here: see docs/vllm.md, or use the built-in engine")
    checkpoint = open_checkpoint(str(wanted.model))
    options, end = _options(wanted, checkpoint), checkpoint.config.eos_token_id
    arguments: dict[str, Any] = {
        "model": str(wanted.model),
        "skip_tokenizer_init": False,
        "dtype": wanted.dtype,
        "max_model_len": options.max_length,
        "max_num_seqs": wanted.max_sequences,
        "enable_prefix_caching": True,
        "tensor_parallel_size": wanted.tensor_parallel,
        "pipeline_parallel_size": wanted.pipeline_parallel,
    }
    if wanted.memory_fraction is not None:
        arguments["gpu_memory_utilization"] = wanted.memory_fraction
    if wanted.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(wanted.kv_cache_gib * GIB)
    if options.adapters:
        rank = next((size for size in _VLLM_RANKS if size >= options.adapter_rank), None)
        if rank is None:
            raise InputError(
                f"adapters of rank {options.adapter_rank}: vLLM takes at most {_VLLM_RANKS[-1]}: lower "
                "--max-adapter-rank (maxLoraRank in config.json), or use the built-in engine"
            )
        arguments |= {"enable_lora": True, "max_loras": options.adapters, "max_lora_rank": rank}
    ends = frozenset([] if end is None else [end] if isinstance(end, int) else end)
    return Vllm(arguments | more, wanted.devices, checkpoint.tokenizer, _defaults(wanted.model), ends)


_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def parallel_sizes(model: Path, devices: int) -> tuple[int, int]:
    """Tensor and pipeline parallel sizes for so many devices: the most ranks that the heads allow, the rest stages.

    Raises:
        InputError: no such pair.
    """
    config = open_checkpoint(str(model)).config
    for tensor in range(devices, 0, -1):
        fits = all(spec.heads % tensor == 0 for spec in config.layer_specs)
        if fits and devices % tensor == 0 and devices // tensor <= config.num_hidden_layers:
            return tensor, devices // tensor
    raise InputError(f"{devices} devices: {config.num_hidden_layers} layers cannot be shared out: give fewer")


def built_in(wanted: Wanted) -> BuiltIn:
    """Load the model into the built-in engine.

    Raises:
        AscendM1Error: one line that says what cannot be used.
    """
    device = choose_device(wanted.device)
    checkpoint = open_checkpoint(str(wanted.model))
    dtype, _ = choose_dtype(wanted.dtype, device, checkpoint.config.dtype)
    options = _options(wanted, checkpoint)
    if wanted.kv_cache_gib is not None:
        options = replace(options, blocks=blocks_within(checkpoint.config, options, dtype, wanted.kv_cache_gib))
    check_size(checkpoint.config, options, dtype, device)
    limit_product_caches(options.max_sequences)
    load: Any = load_quantised if is_quantised(checkpoint) else load_model
    source = load(checkpoint, device, wanted.dtype)
    model = InferenceModel(source, options.max_length)
    del source  # each of its matrices goes when its packed copy has come
    model.pack_weights()
    core = make_core(model, options)
    return BuiltIn(core, checkpoint.tokenizer, _defaults(wanted.model))


def _defaults(model: Path) -> Defaults:
    path = model / "generation_config.json"
    return Defaults.of(GenerationConfig.from_dict(read_json(path))) if path.is_file() else Defaults()


def _options(wanted: Wanted, checkpoint: Checkpoint) -> EngineOptions:
    context = checkpoint.config.max_position_embeddings
    length = min(context, DEFAULT_LENGTH) if wanted.max_length is None else wanted.max_length
    if length > context:
        raise InputError(f"max_length={length}: the checkpoint's context is {context}: give at most that")
    if wanted.kv_cache_gib is not None and not 0 < wanted.kv_cache_gib < 2**20:
        raise InputError(f"--kv-cache-gib={wanted.kv_cache_gib}: give GiB of memory, more than 0")
    adapters = wanted.adapters or {}
    count = len(adapters) if wanted.max_adapters is None else wanted.max_adapters
    if count < len(adapters):
        raise InputError(f"max_adapters={count}: {len(adapters)} are to be loaded at the start: give at least that")
    largest = max((rank_of(folder) for folder in adapters.values()), default=0)
    rank = max(EngineOptions.adapter_rank, largest) if wanted.max_adapter_rank is None else wanted.max_adapter_rank
    if rank < largest:
        raise InputError(f"max_adapter_rank={rank}: an adapter to be loaded has rank {largest}: give at least that")
    return EngineOptions(
        max_length=length,
        max_sequences=wanted.max_sequences,
        chunk=wanted.chunk,
        adapters=count,
        adapter_rank=rank,
    )


def rank_of(folder: Path) -> int:
    """Of an adapter; 1 if it does not say, which loading will refuse. Raises CheckpointError if it is not there."""
    rank = read_adapter_config(folder).get("r")
    return rank if isinstance(rank, int) and 0 < rank < 2**16 else 1
