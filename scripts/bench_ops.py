"""Time the operators at the size of Baichuan-M1-14B beside plain PyTorch and a copy of the same bytes.

    python scripts/bench_ops.py
    python scripts/bench_ops.py --tokens 1 2048 --dtypes bfloat16 --only rms_norm apply_rope --threads 1

For each operator: milliseconds (least of all rounds), how many times faster than the plain composition, how many times
slower than copying its result, and the spread of the rounds (inter-quartile range / median; above 20 % the machine is
busy: repeat). Then the share of a layer that is neither matrix product nor attention. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ascend_m1_ops import (
    apply_rope,
    attention,
    inverse_row_norm,
    norm_head,
    rms_norm,
    rope_reference,
    rope_tables,
    short_conv,
    short_conv_step,
    swiglu,
)

HIDDEN, INTERMEDIATE, VOCAB = 5120, 17408, 133120
KINDS = {"global": (20, 2, 256), "window": (40, 8, 128)}  # query heads, key/value heads, head_dim
EPS, THETA = 1e-6, 1e6
HEAD_HIDDEN = 32  # so little that the product does not hide the scaling of the logits
HEAD_ROWS = 64


@dataclass(frozen=True)
class Case:
    """One operator on one input: what is timed, what it is compared with, and its result's shape."""

    name: str
    run: Callable[[], object]
    plain: Callable[[], object]
    result: Tensor


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds."""

    name: str
    dtype: str
    tokens: int
    ms: float
    plain_ms: float
    copy_ms: float
    spread: float

    def __str__(self) -> str:
        return (
            f"{self.name:<20} {self.dtype:<9} {self.tokens:>6} {self.ms:>9.3f} {self.plain_ms:>9.3f} "
            f"{self.plain_ms / self.ms:>7.2f}x {self.ms / self.copy_ms:>7.1f}x {self.spread:>7.0%}"
        )


HEADER = (
    f"{'operator':<20} {'dtype':<9} {'tokens':>6} {'ms':>9} {'plain ms':>9} {'faster':>8} {'copies':>8} {'spread':>7}"
)


def row_wise_cases(tokens: int, dtype: torch.dtype) -> Iterator[Case]:
    x, weight = torch.randn(1, tokens, HIDDEN).to(dtype), torch.ones(HIDDEN, dtype=dtype)
    yield Case("rms_norm", lambda: rms_norm(x, weight, EPS), lambda: F.rms_norm(x, (HIDDEN,), weight, EPS), x)
    for kind, (heads, _, head_dim) in KINDS.items():
        q = torch.randn(1, tokens, heads, head_dim).to(dtype)
        cos, sin = rope_tables(torch.arange(tokens).unsqueeze(0), head_dim, THETA)
        yield Case(
            f"apply_rope {kind}",
            partial(apply_rope, q, cos, sin),
            partial(rope_reference, q, cos, sin),
            q,
        )
    gate, up = (torch.randn(tokens, INTERMEDIATE).to(dtype) for _ in range(2))
    yield Case("swiglu", lambda: swiglu(gate, up), lambda: F.silu(gate) * up, gate)


def norm_head_cases(tokens: int, dtype: torch.dtype) -> Iterator[Case]:
    x, weight = torch.randn(min(tokens, HEAD_ROWS), HEAD_HIDDEN).to(dtype), torch.randn(VOCAB, HEAD_HIDDEN).to(dtype)
    scale = inverse_row_norm(weight)
    yield Case(
        f"norm_head {x.shape[0]} rows",
        lambda: norm_head(x, weight, scale),
        lambda: (F.linear(x, weight) * scale).to(dtype),
        torch.empty(x.shape[0], VOCAB, dtype=dtype),
    )


def short_conv_cases(tokens: int, dtype: torch.dtype) -> Iterator[Case]:
    for kind, (_, kv_heads, head_dim) in KINDS.items():
        kv, taps = torch.randn(tokens, 2, kv_heads, head_dim).to(dtype), torch.rand(2, kv_heads, 2).to(dtype)
        state = torch.zeros_like(kv[:1])
        step = partial(short_conv_step, kv, taps, state)
        prompt = partial(short_conv, kv, taps, state, torch.tensor([0, tokens]))
        yield Case(f"short_conv {kind}", step if tokens == 1 else prompt, partial(plain_conv, kv, taps, state), kv)


def plain_conv(kv: Tensor, taps: Tensor, state: Tensor) -> Tensor:
    return taps[..., 0, None] * torch.cat([state, kv[:-1]]) + taps[..., 1, None] * kv


def attention_cases(tokens: int, cached: int, dtype: torch.dtype) -> Iterator[Case]:
    for kind, (heads, kv_heads, head_dim) in KINDS.items():
        q = torch.randn(1, tokens, heads, head_dim).to(dtype)
        keys = tokens if tokens > 32 else cached
        k, v = (torch.randn(1, keys, kv_heads, head_dim).to(dtype) for _ in range(2))
        mask = None if tokens in (1, keys) else torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)

        yield Case(f"attention {kind}", partial(attention, q, k, v), partial(plain_attention, q, k, v, mask), k)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    causal = mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)


def measure(case: Case, tokens: int, dtype: torch.dtype, rounds: int) -> Row:
    """Each round times all three in turn, so that a busy moment hits all alike."""
    copy = partial(torch.clone, case.result)
    functions: tuple[Callable[[], object], ...] = (case.run, case.plain, copy)
    seconds: list[list[float]] = [[], [], []]
    for index in range(rounds + 1):
        for times, function in zip(seconds, functions, strict=True):
            start = time.perf_counter()
            function()
            if index:  # the first round warms up
                times.append(time.perf_counter() - start)
    low, median, high = statistics.quantiles(seconds[0], n=4)
    ms, plain_ms, copy_ms = (1000 * min(times) for times in seconds)
    return Row(case.name, str(dtype).removeprefix("torch."), tokens, ms, plain_ms, copy_ms, (high - low) / median)


def layer_shares(rows: list[Row], dtype: torch.dtype, tokens: int, rounds: int) -> dict[str, float]:
    """Per kind of layer: time outside matrix products and attention, as a fraction of the whole.

    The products are timed on one projection [hidden, intermediate] and scaled by the number of weights.
    """
    name = str(dtype).removeprefix("torch.")
    ms = {row.name: row.ms for row in rows if (row.dtype, row.tokens) == (name, tokens)}
    x, weight = torch.randn(tokens, HIDDEN).to(dtype), torch.randn(INTERMEDIATE, HIDDEN).to(dtype)
    product = min(_seconds(lambda: F.linear(x, weight)) for _ in range(max(2, rounds // 4))) * 1000
    shares = {}
    for kind, (heads, kv_heads, head_dim) in KINDS.items():
        weights = HIDDEN * (2 * heads + 2 * kv_heads) * head_dim + 3 * HIDDEN * INTERMEDIATE
        heavy = product * weights / weight.numel() + ms[f"attention {kind}"]
        light = 2 * ms["rms_norm"] + ms["swiglu"] + ms[f"short_conv {kind}"]
        light += ms[f"apply_rope {kind}"] * (heads + kv_heads) / heads
        shares[kind] = light / (light + heavy)
    return shares


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 512], help="tokens of one forward pass")
    parser.add_argument("--cached", type=int, default=2048, help="keys that up to 32 tokens attend to")
    known = ["bfloat16", "float16", "float32"]
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=known)
    parser.add_argument(
        "--only", nargs="+", default=[], help="operators by the beginning of their name; no shares then"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    if arguments.rounds < 2 or min(arguments.tokens) < 1:
        parser.error("give --rounds of at least 2 and --tokens of at least 1")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    print(f"{machine}, {arguments.threads} threads, torch {torch.__version__}, Python {platform.python_version()}")
    print(HEADER)
    rows: list[Row] = []
    shares: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for dtype in (getattr(torch, name) for name in arguments.dtypes):
            for tokens in arguments.tokens:
                for case in (
                    *row_wise_cases(tokens, dtype),
                    *short_conv_cases(tokens, dtype),
                    *norm_head_cases(tokens, dtype),
                    *attention_cases(tokens, arguments.cached, dtype),
                ):
                    if not arguments.only or case.name.startswith(tuple(arguments.only)):
                        rows.append(measure(case, tokens, dtype, arguments.rounds))
                        print(rows[-1], flush=True)
                if not arguments.only:
                    share = layer_shares(rows, dtype, tokens, arguments.rounds)
                    shares[f"{str(dtype).removeprefix('torch.')} {tokens}"] = share
                    print("  outside products and attention: " + ", ".join(f"{k} {v:.1%}" for k, v in share.items()))
    print(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows], "shares": shares}))


if __name__ == "__main__":
    main()
