"""``ascend-m1 serve``: options, the model, the server."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ascend_m1.cli import out_of_memory
from ascend_m1.cli.options import EMBEDDED, add_model_options, note, quiet, require_extra
from ascend_m1.errors import InputError

if TYPE_CHECKING:
    from .engines import Wanted
    from .run import Service
    from .server import Address

DEFAULT_PORT = 1025  # MindIE Service's
KEY_VARIABLE = "ASCEND_M1_API_KEY"
_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")
_TOO_LARGE = (
    "out of memory: lower --kv-cache-gib, --max-sequences or --max-length (npuMemSize, maxBatchSize, maxSeqLen in "
    "config.json), or use a 16-bit --dtype or a larger device; see `ascend-m1 plan`"
)
# What a config.json says; with one, these options are left at their defaults.
_CONFIGURED = (
    *("model", "max_length", "max_sequences", "kv_cache_gib", "adapter", "max_adapters", "max_adapter_rank"),
    *("tensor_parallel_size", "pipeline_parallel_size"),
    *("host", "port", "served_model_name", "max_queue", "max_body_mb", "ssl_certfile", "ssl_keyfile"),
)


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "serve",
        help="serve a checkpoint over HTTP",
        description="Serves a checkpoint through OpenAI's interface (/v1/chat/completions, /v1/completions, "
        "/v1/models) and those of MindIE Service (its own, TGI's, vLLM's, Triton's). SIGTERM or Ctrl-C lets requests "
        "under way finish; a second one ends at once.",
    )
    add_model_options(parser)
    parser.add_argument(
        "--config",
        nargs="?",
        const="",
        metavar="FILE",
        help="a config.json of MindIE Service in place of the options below; without FILE the one that "
        "MIES_CONFIG_JSON_PATH names",
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--engine",
        choices=("built-in", "vllm"),
        default="built-in",
        help="built-in: on one device; vllm: vLLM's, where that is installed, on several, too (default: built-in)",
    )
    for option, what in (
        ("--tensor-parallel-size", "devices that share a layer"),
        ("--pipeline-parallel-size", "groups of layers on devices of their own"),
    ):
        engine.add_argument(option, type=int, default=1, metavar="N", help=f"{what}, with --engine vllm (default: 1)")
    engine.add_argument("--max-length", type=int, metavar="N", help="tokens of the longest sequence (default: the "
                        "checkpoint's context, at most 8192)")  # fmt: skip
    engine.add_argument("--max-sequences", type=int, default=16, metavar="N", help="at the same time (default: 16)")
    engine.add_argument("--kv-cache-gib", type=float, metavar="GIB", help="memory for the cache; where it runs out, "
                        "whole sequences wait in the host's memory (default: for all at their longest)")  # fmt: skip
    engine.add_argument("--adapter", action="append", default=[], metavar="NAME=DIR", help="a LoRA adapter from a PEFT "
                        "folder, asked for as a model; may be repeated")  # fmt: skip
    engine.add_argument("--max-adapters", type=int, metavar="N", help="loaded at the same time; more than --adapter "
                        "names leave room for /v1/load_lora_adapter (default: as many as those)")  # fmt: skip
    engine.add_argument("--max-adapter-rank", type=int, metavar="R", help="of an adapter (default: the largest of "
                        "--adapter, at least 16)")  # fmt: skip
    _add_server_options(parser)
    given = {name: parser.get_default(name) for name in _CONFIGURED}
    parser.set_defaults(run=run, unconfigured=given)


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="(default: %(default)s, this machine alone)")
    server.add_argument("--port", type=int, default=DEFAULT_PORT, help="(default: %(default)s)")
    server.add_argument("--served-model-name", metavar="NAME", help="(default: the checkpoint folder's name)")
    server.add_argument(
        "--api-key", metavar="KEY", help=f"that requests must bring (default: {KEY_VARIABLE} of the environment)"
    )
    server.add_argument("--max-queue", type=int, default=256, metavar="N", help="requests that may wait (default: 256)")
    server.add_argument("--max-body-mb", type=float, default=4.0, metavar="MB", help="of a request (default: 4)")
    server.add_argument("--ssl-certfile", metavar="PEM", help="speak TLS with this certificate")
    server.add_argument("--ssl-keyfile", metavar="PEM", help="and its private key")
    server.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="of the lines of JSON on "
                        "stderr (default: MINDIE_LOG_LEVEL of the environment, else info)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Options, file, addresses and certificates are looked at before the weights are loaded."""
    require_extra("serve", _NEEDED)

    from .engines import built_in, vllm
    from .errors import EngineError
    from .logs import start_logging
    from .mindie.environment import read_environment
    from .run import serve_forever
    from .server import check

    environment = read_environment(os.environ)
    wanted, service = _configured(arguments, environment) if arguments.config is not None else _options(arguments)
    check(service.addresses.values())
    try:
        with quiet():
            loaded = vllm(wanted) if arguments.engine == "vllm" else built_in(wanted)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(_TOO_LARGE) from None
    start_logging(arguments.log_level or environment.log_level)

    def on_start(addresses: list[Address]) -> None:
        note(f"{service.name} at {', '.join(address.url for address in addresses)}")
        if service.key is None and not all(address.local for address in addresses):
            note(f"no API key: whoever reaches it may stop it and load adapters: give --api-key or {KEY_VARIABLE}")

    try:
        serve_forever(loaded, service, on_start)
    except EngineError as error:  # its traceback is in the log
        note(f"error: {error}")
        return 1
    return 0


def _key(arguments: argparse.Namespace) -> str | None:
    return arguments.api_key or os.environ.get(KEY_VARIABLE) or None


def _configured(arguments: argparse.Namespace, environment: Any) -> tuple[Wanted, Service]:
    from dataclasses import replace

    from .mindie.start import check_files, chosen_device, configured, wanted_engine, wanted_service

    for name, default in arguments.unconfigured.items():
        if getattr(arguments, name) != default:
            raise InputError(f"--{name.replace('_', '-')} and --config: the file says it: leave the option out")
    config, path = configured(arguments.config, environment)
    if config.idle:
        note(f"{path}: without effect here: {', '.join(config.idle)}")
    vllm = arguments.engine == "vllm"
    idle = [*environment.idle, *(["NPU_MEMORY_FRACTION"] if environment.memory_fraction and not vllm else [])]
    if idle:
        note(f"environment: without effect here: {', '.join(idle)}")
    check_files(config, path)
    device, reason = (arguments.device, None) if vllm else chosen_device(config, path, arguments.device)
    if reason is not None:
        note(reason)
    engine = replace(wanted_engine(config, path, environment, vllm, device), dtype=arguments.dtype)
    if engine.max_sequences < config.max_sequences:
        note(
            f"{path}: maxBatchSize={config.max_sequences}: the engine runs {engine.max_sequences} at once, others wait"
        )
    return engine, wanted_service(config, environment, _key(arguments))


def _options(arguments: argparse.Namespace) -> tuple[Wanted, Service]:
    from .engines import Wanted
    from .run import Service, everywhere
    from .server import Address

    name = arguments.served_model_name or _name(arguments.model)
    adapters = _adapters(arguments.adapter, name)
    if (arguments.ssl_certfile is None) != (arguments.ssl_keyfile is None):
        raise InputError("--ssl-certfile and --ssl-keyfile: give both or none")
    sizes = (arguments.tensor_parallel_size, arguments.pipeline_parallel_size)
    if min(sizes) < 1 or (sizes != (1, 1) and arguments.engine != "vllm"):
        raise InputError(f"parallel sizes {sizes}: give 1 or more, and --engine vllm: the built-in one has one device")
    for option in ("max_queue", "max_body_mb", "port"):
        value = getattr(arguments, option)
        if not 0 <= value < 2**16:
            raise InputError(f"--{option.replace('_', '-')}={value}: give 0 to 65535")
    engine = Wanted(
        model=Path(arguments.model),
        device=arguments.device,
        dtype=arguments.dtype,
        max_length=arguments.max_length,
        max_sequences=arguments.max_sequences,
        kv_cache_gib=arguments.kv_cache_gib,
        adapters=adapters,
        max_adapters=arguments.max_adapters,
        max_adapter_rank=arguments.max_adapter_rank,
        tensor_parallel=sizes[0],
        pipeline_parallel=sizes[1],
    )
    paths = [None if path is None else Path(path) for path in (arguments.ssl_certfile, arguments.ssl_keyfile)]
    service = Service(
        name=name,
        addresses=everywhere(Address(arguments.host, arguments.port, *paths)),
        key=_key(arguments),
        max_queue=arguments.max_queue,
        max_body=int(arguments.max_body_mb * 2**20),
        adapters=adapters,
    )
    return engine, service


def _adapters(texts: list[str], model: str) -> dict[str, Path]:
    """Folders by name. ``model``: the served model's own name."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise InputError(f"--adapter {text}: give NAME=DIR")
        if name in found or name == model:
            whose = "another adapter's" if name in found else "the model's own"
            raise InputError(f"--adapter {text}: the name is {whose}: choose another one")
        found[name] = Path(folder)
    return found


def _name(model: str) -> str:
    return "m1-icd10" if Path(model) == EMBEDDED else Path(model).resolve().name
