"""``ascend-m1 plan``: what a model needs, before anything is bought or downloaded."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ..errors import DeviceError, InputError
from .options import add_scheme_options, quiet, write

if TYPE_CHECKING:
    from ..configuration_baichuan_m1 import BaichuanM1Config
    from ..plan import Plan
    from ..quantization.scheme import Scheme

GIB = 1 << 30


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "plan",
        help="memory that a model needs, and a prediction of its speed",
        description="Parameters and memory per device, and predicted decode speed on Ascend products, computed from "
        "the configuration; needs no weights.",
    )
    parser.add_argument(
        "--model", metavar="DIR", help="directory with config.json (default: the published 14B geometry)"
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences at once (default: 1)")
    parser.add_argument("--length", type=int, metavar="N", help="tokens of each (default: the whole context)")
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16 or float16 (default: bfloat16)")
    add_scheme_options(parser, bits=None)
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="tensor-parallel devices, as a plan only")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of one device: does it fit? The "
                        "exit status is 1 if not")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compute the plan and print it; 1: it does not fit into --memory."""
    if arguments.memory is not None and not 0 < arguments.memory < 1e9:
        raise InputError(f"memory={arguments.memory}: give GiB above 0, below 1e9")

    from ..configuration_baichuan_m1 import BaichuanM1Config
    from ..device import DTYPES
    from ..plan import longest, make_plan, parameters
    from ..prediction import predict, why_not
    from .checkpoint import read_config

    if arguments.dtype not in DTYPES:
        raise DeviceError(f"dtype {arguments.dtype!r} is not known: use {', '.join(DTYPES)}")
    with quiet():
        config = BaichuanM1Config() if arguments.model is None else read_config(arguments.model)
        length = config.max_position_embeddings if arguments.length is None else arguments.length
        plan = make_plan(
            config, arguments.batch, length, DTYPES[arguments.dtype], arguments.devices, _scheme(arguments, config)
        )
        counts = parameters(config)
    result: dict[str, Any] = {
        "model": arguments.model or "Baichuan-M1-14B",
        "parameters": counts | {"total": sum(counts.values())},
    }
    result |= plan.as_dict()
    if arguments.memory is not None:
        size = int(arguments.memory * GIB)
        fits = plan.total <= size
        result["memory"] = {"bytes": size, "fits": fits, "longest": longest(config, plan, size)}
    reason = why_not(plan)
    dtype = DTYPES[arguments.dtype]
    result["prediction"] = predict(config, plan, dtype.itemsize) if reason is None else {"reason": reason}
    write(json.dumps(result, indent=2) + "\n" if arguments.json else _table(result, plan))
    return 0 if arguments.memory is None or result["memory"]["fits"] else 1


def _scheme(arguments: argparse.Namespace, config: BaichuanM1Config) -> Scheme | None:
    """What is asked for, or how the checkpoint is quantised already."""
    from ..quantization.packing import read_description
    from ..quantization.scheme import Scheme

    bits, group = arguments.bits, arguments.group_size
    description = getattr(config, "quantization_config", None)
    if description is not None:
        if bits is not None or group is not None:
            raise InputError(f"{arguments.model}: is quantised already: leave --bits and --group-size out")
        return read_description(description)
    if bits is None:
        if group is not None:
            raise InputError(f"--group-size {group} is of quantised weights: give --bits 4, too")
        return None
    return Scheme.of(bits, group)


def _table(result: dict[str, Any], plan: Plan) -> str:
    counts = result["parameters"]
    total = counts["total"]
    lines = [f"{result['model']}: {_billions(total)} parameters"]
    lines += [f"  {part:<12}{_billions(count):>10}" for part, count in counts.items() if part != "total"]
    where = "one device" if plan.devices == 1 else f"each of {plan.devices} devices"
    lines += ["", f"{where}, {plan.dtype}, batch {plan.batch}, {plan.length:,} tokens each"]
    cache = plan.cache
    rows = [
        ("weights", plan.weights, str(plan.scheme or "")),
        ("cache", cache.total, f"a cache without windows: {_size(plan.full_cache)}"),
        ("  global layers", cache.global_layers, "K and V of every token"),
        ("  window layers", cache.window_layers, "rings as long as the window"),
        ("  convolution", cache.convolution, "the last raw k and v"),
        ("activations", plan.activations, "whole prompt in one forward; widest in the MLP, 5·hidden + 3·intermediate"),
        ("total", plan.total, ""),
    ]
    lines += [f"  {name:<17}{_size(size):>25}  {remark}".rstrip() for name, size, remark in rows]
    lines.append("  A cache that grows while generating reserves up to a quarter more, never beyond the context.")
    lines.append(
        f"  vLLM's cache holds the same sequences in {plan.vllm_cache // plan.vllm_page:,} pages of "
        f"{plan.vllm_page >> 10:,} KiB: {_size(plan.vllm_cache)}."
    )
    if plan.devices > 1:
        lines.append("  Several devices: with vLLM. Key/value heads are repeated where they are too few.")
    if "memory" in result:
        lines += ["", _verdict(result["memory"], plan)]
    lines += ["", *_prediction(result["prediction"])]
    return "\n".join(lines) + "\n"


def _prediction(found: dict[str, Any]) -> list[str]:
    if "reason" in found:
        return [f"no prediction of decode speed for {found['reason']}"]
    lines = [
        "predicted decode speed, not measured on an NPU: "
        f"{found['launches']} launches, {found['bytes'] / 1e9:.2f} GB a step"
    ]
    for name, product in found["products"].items():
        speed = f"{product['tokens_per_second']:.0f} tokens/s, at most {product['at_most']:.0f}"
        device = f"{product['memory'] / 1e9:.0f} GB, {product['bandwidth'] / 1e12:g} TB/s"
        title = f"{name} ({product['model']})"
        lines.append(f"  {title:<22}{device}  {speed if product['fits'] else 'does not fit'}")
    share, launch = found["assumed"]["share_of_bandwidth"], found["assumed"]["seconds_per_launch"]
    lines.append(
        f"  tokens/s = batch / (bytes / ({share} · bandwidth) + launches · {launch * 1e6:g} µs); {share} and "
        f"{launch * 1e6:g} µs are assumed;\n  at most: bytes / bandwidth alone, while memory is the bound. 310P is "
        "left out: its steps are composed."
    )
    return lines


def _verdict(memory: dict[str, Any], plan: Plan) -> str:
    size, longest = memory["bytes"], memory["longest"]
    left = f"{_size(size - plan.total)} left" if memory["fits"] else f"{_size(plan.total - size)} short"
    reach = f"up to {longest:,} tokens at batch {plan.batch}" if longest else "not even one token fits"
    return f"{'fits' if memory['fits'] else 'does not fit'} into {size / GIB:g} GiB: {left}; {reach}"


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _size(size: int) -> str:
    if size < 10_000_000:
        return f"{size / 1e6:.2f} MB"
    return f"{size / 1e9:.2f} GB ({size / GIB:.2f} GiB)"
