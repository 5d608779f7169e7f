"""How much memory an engine's cache takes, told before it is taken."""

from __future__ import annotations

import torch

from ascend_m1.configuration_baichuan_m1 import BaichuanM1Config
from ascend_m1.device import is_accelerator
from ascend_m1.environment import cpu
from ascend_m1.errors import InputError
from ascend_m1.paged import FILLERS, PagedCache

from .core import EngineOptions
from .store import PrefixStore

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
            f"the cache of max_sequences={sequences}, max_length={length} takes {need / 1e9:.1f} GB and {device} has "
            f"{have / 1e9:.1f}: lower --max-sequences or --max-length (maxBatchSize, maxSeqLen in config.json)"
        )


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
