"""How much memory an engine's cache takes, told before it is taken."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import torch

from ascend_m1.configuration_baichuan_m1 import BaichuanM1Config
from ascend_m1.device import is_accelerator
from ascend_m1.environment import cpu
from ascend_m1.errors import InputError
from ascend_m1.paged import FILLERS, PagedCache

from .core import EngineOptions
from .request import blocks_for
from .store import PrefixStore

# Of oneDNN and of torch above it, each holds what the other lets go. Read when the first product is computed.
_PRODUCT_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
GIB = 2**30
MOST_SEQUENCES = FILLERS  # at the same time: those that fill a step up need rows of their own


def check_size(config: BaichuanM1Config, options: EngineOptions, dtype: torch.dtype, device: torch.device) -> None:
    """Raises InputError if there are more sequences than a decode step takes, or the cache alone is too large."""
    sequences, length = options.max_sequences, options.max_length
    if sequences > MOST_SEQUENCES:
        raise InputError(
            f"max_sequences={sequences}: the built-in engine runs at most {MOST_SEQUENCES} at the same time: lower "
            "--max-sequences (maxBatchSize in config.json)"
        )
    need, have = cache_bytes(config, options, dtype), _memory(device)
    if have is not None and need > have:
        raise InputError(
            f"the cache of max_sequences={sequences}, max_length={length} takes {need / GIB:.1f} GiB and {device} has "
            f"{have / GIB:.1f}: give --kv-cache-gib, or lower --max-sequences or --max-length (npuMemSize, "
            "maxBatchSize, maxSeqLen in config.json)"
        )


def blocks_within(config: BaichuanM1Config, options: EngineOptions, dtype: torch.dtype, gib: float) -> int:
    """How many blocks a cache of so many GiB has, with what prefix caching keeps beside it.

    Raises:
        InputError: fewer than the longest sequence takes.
    """
    fixed, two = (cache_bytes(config, replace(options, blocks=blocks), dtype) for blocks in (1, 2))
    each, least = two - fixed, blocks_for(options.max_length)
    fixed -= each  # rings and states, one for each of the sequences
    blocks = int(gib * GIB - fixed) // each
    if blocks < least:
        need = math.ceil((fixed + least * each) / GIB * 1000) / 1000
        raise InputError(
            f"--kv-cache-gib={gib:g}: {options.max_sequences} sequences, one of them of {options.max_length} tokens, "
            f"take {need:g}: give at least that, or lower --max-sequences or --max-length (npuMemSize, maxBatchSize, "
            "maxSeqLen in config.json)"
        )
    return blocks


def limit_product_caches(sequences: int) -> None:
    """Let a CPU keep the products it has compiled for a decode step of any size and for some prompts.

    One is compiled for every number of rows and takes about half a MiB. Without a limit 1,024 are kept: memory
    grows for the first thousands of requests.
    """
    for name in _PRODUCT_CACHES:
        os.environ.setdefault(name, str(min(1024, 64 + 8 * sequences)))


def cache_bytes(config: BaichuanM1Config, options: EngineOptions, dtype: torch.dtype) -> int:
    """Of the cache and of what prefix caching keeps beside it; nothing is allocated."""
    cache = PagedCache(config, options.max_sequences, options.all_blocks, dtype, "meta", options.max_length)
    if not options.prefix_caching:
        return cache.nbytes
    return cache.nbytes + PrefixStore(cache, [spec.window is not None for spec in config.layer_specs]).nbytes


def _memory(device: torch.device) -> int | None:
    """All bytes of a device, or of the host; None: it does not say."""
    if is_accelerator(device):
        total: int = torch.get_device_module(device).mem_get_info(device)[1]
        return total
    found: int | None = cpu()["memory"]
    return found
