"""Measure short_conv and the fused conv_rope_cache at the sizes of Baichuan-M1-14B against copies of the same bytes.

    python scripts/bench_kernels.py
    python scripts/bench_kernels.py --tokens 8192 --dtypes bfloat16 --threads 1
    python scripts/bench_kernels.py --write docs/benchmarks.md

On a CUDA machine the Triton kernels are compared with the composition of torch calls, then timed. Elsewhere it says
that the hardware is absent and measures the CPU operators. Each round times an operator, what it replaces and a copy in
turn, so that a busy moment hits all alike; printed are medians and quartiles of the rounds' ratios. On a GPU a captured
graph of several calls is timed, so that it is the kernels that take the time and not their launches. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ascend_m1_ops import TokenTable, apply_rope, conv_rope_cache, rope_tables, short_conv, short_conv_step
from ascend_m1_ops.conv_rope_cache import kernels as composition
from bench.machine import describe_machine
from bench.report import Spread, markdown_table, publish, ratios, write_section

SECTIONS = {"cpu": "bench_kernels", "cuda": "bench_kernels_cuda"}  # places in the document
GEOMETRIES = {"global": (20, 2, 256), "window": (40, 8, 128)}  # query heads, key/value heads, head_dim
BLOCK_SIZE, THETA = 128, 1e6
DECODE = 64  # sequences of a decode step
CALLS = 20  # in a captured graph
STRIDED = "strided"  # kv as a slice of the packed projection, as the model has it


@dataclass(frozen=True)
class Case:
    """An operator, what it replaces (None: nothing), and the tensor whose copy moves as many bytes."""

    name: str
    run: Callable[[], object]
    replaced: Callable[[], object] | None
    copied: Tensor


@dataclass(frozen=True)
class Batch:
    """Arguments of ``conv_rope_cache``."""

    packed: Tensor
    weight: Tensor
    cos: Tensor
    sin: Tensor
    table: TokenTable
    k_cache: Tensor
    v_cache: Tensor
    state: Tensor

    def arguments(self) -> tuple[Tensor | TokenTable, ...]:
        return tuple(vars(self).values())

    def tensors(self) -> tuple[Tensor, ...]:
        values = (vars(x).values() if isinstance(x, TokenTable) else (x,) for x in self.arguments())
        return tuple(tensor for group in values for tensor in group)

    def kv(self) -> Tensor:
        """Raw k and v [tokens, 2, kv_heads, head_dim], a view."""
        kv_heads, head_dim = self.k_cache.shape[2:]
        return self.packed[:, -2 * kv_heads * head_dim :].unflatten(1, (2, kv_heads, head_dim))


def make_batch(kind: str, sequences: int, tokens: int, dtype: torch.dtype, device: torch.device) -> Batch:
    """``sequences`` of ``tokens`` each, all of them continued."""
    heads, kv_heads, head_dim = GEOMETRIES[kind]
    total = sequences * tokens
    blocks = -(-total // BLOCK_SIZE)
    cache = [torch.zeros(blocks, BLOCK_SIZE, kv_heads, head_dim, dtype=dtype, device=device) for _ in range(2)]
    index = torch.arange(total, device=device)
    rows = torch.arange(sequences, dtype=torch.int32, device=device)
    table = TokenTable.prefill(
        [tokens] * sequences,
        (index % tokens).int(),
        torch.randperm(total).int().to(device),
        rows,
        torch.ones_like(rows),
    )
    return Batch(
        torch.randn(total, (heads + 2 * kv_heads) * head_dim, device=device).to(dtype),
        torch.rand(2, kv_heads, 2, device=device).to(dtype),
        *rope_tables(torch.arange(max(tokens, 2), device=device), head_dim, THETA),
        table,
        *cache,
        torch.randn(sequences, 2, kv_heads, head_dim, device=device).to(dtype),
    )


def unfused(batch: Batch, decode: bool) -> Tensor:
    """``short_conv`` or its step, ``apply_rope`` twice, two cache writes, the state read and written."""
    kv, rows, slots = batch.kv(), batch.table.state_rows.long(), batch.table.slots.long()
    heads = batch.packed.shape[1] // kv.shape[-1] - 2 * kv.shape[2]
    before = batch.state[rows]
    if decode:
        out, after = short_conv_step(kv, batch.weight, before)
    else:
        out, after = short_conv(kv, batch.weight, before, batch.table.cu_seqlens)
    cos, sin = (table.index_select(0, batch.table.positions) for table in (batch.cos, batch.sin))
    k = apply_rope(out[:, 0], cos, sin)
    page, place = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    batch.k_cache.index_put_((page, place), k)
    batch.v_cache.index_put_((page, place), out[:, 1])
    batch.state.index_copy_(0, rows, after)
    return apply_rope(batch.packed.unflatten(1, (-1, kv.shape[-1]))[:, :heads], cos, sin)


def cases(tokens: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    for kind in GEOMETRIES:
        batch = make_batch(kind, 1, tokens, dtype, device)
        kv, dense = batch.kv(), batch.kv().contiguous()
        for name, x in ((f"short_conv {kind}", dense), (f"short_conv {kind} {STRIDED}", kv)):
            inputs = (x, batch.weight, batch.state, batch.table.cu_seqlens)
            yield Case(f"{name} {tokens}", lambda inputs=inputs: short_conv(*inputs), None, x)
        for sequences, each in ((1, tokens), (DECODE, 1)):
            batch = make_batch(kind, sequences, each, dtype, device)
            yield Case(
                f"conv_rope_cache {kind} {sequences} x {each}",
                lambda batch=batch: conv_rope_cache(*batch.arguments()),
                lambda batch=batch, decode=each == 1: unfused(batch, decode),
                batch.packed,
            )


def timer(function: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """A function that measures the seconds of one call."""
    if device.type == "cuda":
        return gpu_timer(function)

    def seconds() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return seconds


def gpu_timer(function: Callable[[], object]) -> Callable[[], float]:
    function()  # compiles the kernels
    torch.cuda.synchronize()
    graph, start, end = torch.cuda.CUDAGraph(), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            function()

    def seconds() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / CALLS

    return seconds


def measure(case: Case, rounds: int, device: torch.device) -> dict[str, object]:
    """Milliseconds, moved bytes a second, and the ratios to a copy and to what it replaces."""
    functions = [case.run, case.copied.contiguous().clone, *([case.replaced] if case.replaced else [])]
    timers = [timer(function, device) for function in functions]
    samples: list[list[float]] = [[] for _ in functions]
    for index in range(rounds + 2):
        for times, seconds in zip(samples, timers, strict=True):
            taken = seconds()
            if index >= 2:  # the first rounds warm up
                times.append(taken)
    row: dict[str, object] = {
        "case": case.name,
        "dtype": str(case.copied.dtype).removeprefix("torch."),
        "ms": Spread.of(samples[0]).times(1000).json(),
        "gigabytes_per_second": float(f"{2 * case.copied.nbytes / min(samples[0]) / 1e9:.3g}"),
        "of_copy_bandwidth": ratios(samples[1], samples[0]).json(),
    }
    if case.replaced:
        row["times_faster_than_unfused"] = ratios(samples[2], samples[0]).json()
    return row


def check_kernel(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Largest difference between kernel and composition, relative to the largest element, per geometry.

    Raises:
        SystemExit: more than the two roundings of k: no time is worth printing then.
    """
    found = {}
    for kind in GEOMETRIES:
        batch = make_batch(kind, 4, 33, dtype, device)
        other = replace(batch, **{name: getattr(batch, name).clone() for name in ("k_cache", "v_cache", "state")})
        got = (conv_rope_cache(*batch.arguments()), batch.k_cache, batch.v_cache, batch.state)
        want = (composition.forward(*other.arguments()), other.k_cache, other.v_cache, other.state)
        errors = [(a.float() - b.float()).abs().max() / b.float().abs().max() for a, b in zip(got, want, strict=True)]
        found[kind] = max(error.item() for error in errors)
        if not found[kind] <= 2 * torch.finfo(dtype).eps:
            raise SystemExit(f"conv_rope_cache {kind} {dtype}: the kernel is off by {found[kind]:.2g}: not timed")
    return found


def show(row: dict[str, object]) -> list[str]:
    def percent(values: object, form: str) -> str:
        low, middle, high = values  # type: ignore[misc]
        return f"{middle:{form}} ({low:{form}}-{high:{form}})"

    faster = row.get("times_faster_than_unfused")
    return [
        str(row["case"]),
        str(row["dtype"]),
        percent(row["ms"], ".3g"),
        str(row["gigabytes_per_second"]),
        percent(row["of_copy_bandwidth"], ".0%"),
        percent(faster, ".2f") if faster else "",
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 8192], help="tokens of a prefill")
    known = ["bfloat16", "float16", "float32"]
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=known)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="document with a place to fill, see SECTIONS",
    )
    arguments = parser.parse_args()
    if arguments.rounds < 2 or min(arguments.tokens) < 1:
        parser.error("give --rounds of at least 2 and --tokens of at least 1")
    return arguments


@torch.inference_mode()
def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    section = SECTIONS[device.type]
    if arguments.write:
        write_section(arguments.write, section, None)
    machine = describe_machine()
    if device.type == "cuda":
        machine["device"] = f"{torch.cuda.get_device_name(device)}; kernels by Triton"
    else:
        machine["hardware"] = "no CUDA device, so the Triton kernels are not measured; the CPU operators are"
    rows, errors = [], {}
    for name in arguments.dtypes:
        dtype = getattr(torch, name)
        if device.type == "cuda":
            errors[name] = check_kernel(dtype, device)
            machine[name] = f"kernel and composition differ by at most {max(errors[name].values()):.2g} of the largest"
        for tokens in arguments.tokens:
            rows += [measure(case, arguments.rounds, device) for case in cases(tokens, dtype, device)]
    header = ["operator, tokens", "dtype", "ms", "GB/s", "of a copy's bandwidth", "times faster than unfused"]
    publish(machine, f"\n{markdown_table(header, [show(row) for row in rows])}", arguments.write, section)
    print(json.dumps({"machine": machine, "device": device.type, "errors": errors, "rows": rows}))


if __name__ == "__main__":
    main()
