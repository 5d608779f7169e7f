"""Bytes that M1Cache really allocates for one long sequence in the 14B geometry, all layers, without the weights.

    python scripts/bench_cache.py                                  # 32,768 tokens in bfloat16, chunks of 4,096
    python scripts/bench_cache.py --tokens 131072 --chunk 8192
    python scripts/bench_cache.py --write docs/benchmarks.md       # puts the line into the document

The tokens go through the calls that the model's layers make (``conv_state``, ``extend``, ``advance``), chunk by chunk,
with random keys and values. The bytes are those of the tensors that stand afterwards.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path

import torch

from ascend_m1 import BaichuanM1Config, M1Cache
from bench.models import fill_m1_cache
from bench.report import write_section

SECTION = "bench_cache"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--chunk", type=int, default=4096, help="tokens of one forward")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"document with a place <!-- {SECTION} --> to fill")
    arguments = parser.parse_args(argv)
    if arguments.tokens < 1 or arguments.chunk < 1:
        parser.error("--tokens and --chunk: give positive numbers")
    return arguments


@torch.no_grad()
def filled_cache(config: BaichuanM1Config, tokens: int, chunk: int, dtype: torch.dtype) -> M1Cache:
    """A cache after ``tokens`` tokens of one sequence."""
    cache = M1Cache(config)
    for start in range(0, tokens, chunk):
        fill_m1_cache(cache, config, 1, min(chunk, tokens - start), dtype)
    return cache


def main(argv: list[str] | None = None) -> None:
    """Fill, count, print, write."""
    arguments = parse_arguments(argv)
    if arguments.write:
        write_section(arguments.write, SECTION, None)
    config, dtype = BaichuanM1Config(), DTYPES[arguments.dtype]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cache = filled_cache(config, arguments.tokens, arguments.chunk, dtype)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if cache.get_seq_length() != arguments.tokens:
        raise SystemExit(f"the cache counts {cache.get_seq_length()} tokens instead of {arguments.tokens}")
    full = sum(2 * spec.kv_size for spec in config.layer_specs) * arguments.tokens * dtype.itemsize
    line = (
        f"{arguments.tokens:,} tokens in {arguments.dtype}, {config.num_hidden_layers} layers, chunks of "
        f"{arguments.chunk:,}: {cache.nbytes / 1e9:.3f} GB allocated; {full / 1e9:.3f} GB if every layer kept every "
        f"token ({cache.nbytes / full:.1%}); process peak while filling: {peak / 1e9:.2f} GB"
    )
    print(line)
    if arguments.write:
        write_section(arguments.write, SECTION, line)
    print(json.dumps({"tokens": arguments.tokens, "dtype": arguments.dtype, "bytes": cache.nbytes, "full_bytes": full}))


if __name__ == "__main__":
    main()
