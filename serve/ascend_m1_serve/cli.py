"""``ascend-m1 serve``: options, the model, the server."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ascend_m1.cli.options import EMBEDDED, add_model_options, note, quiet
from ascend_m1.errors import InputError

DEFAULT_PORT = 1025  # MindIE Service's
KEY_VARIABLE = "ASCEND_M1_API_KEY"
_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "serve",
        help="serve a checkpoint over HTTP",
        description="Serves a checkpoint through OpenAI's interface (/v1/chat/completions, /v1/completions, "
        "/v1/models). SIGTERM or Ctrl-C lets requests under way finish; a second one ends at once.",
    )
    add_model_options(parser)
    engine = parser.add_argument_group("engine")
    engine.add_argument("--max-length", type=int, metavar="N", help="tokens of the longest sequence (default: the "
                        "checkpoint's context, at most 8192)")  # fmt: skip
    engine.add_argument("--max-sequences", type=int, default=16, metavar="N", help="at the same time (default: 16)")
    engine.add_argument("--adapter", action="append", default=[], metavar="NAME=DIR", help="a LoRA adapter from a PEFT "
                        "folder, asked for as a model; may be repeated")  # fmt: skip
    _add_server_options(parser)
    parser.set_defaults(run=run)


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
    server.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="of the "
                        "lines of JSON on stderr (default: info)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Everything that can be wrong is looked at before the weights are loaded."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f'{", ".join(missing)} not installed: pip install "ascend-m1[serve]"')
    adapters = dict(_named(text) for text in arguments.adapter)
    if (arguments.ssl_certfile is None) != (arguments.ssl_keyfile is None):
        raise InputError("--ssl-certfile and --ssl-keyfile: give both or none")
    for option in ("max_queue", "max_body_mb", "port"):
        value = getattr(arguments, option)
        if not 0 <= value < 2**16:
            raise InputError(f"--{option.replace('_', '-')}={value}: give 0 to 65535")

    from .engines import Wanted, built_in
    from .logs import start_logging
    from .run import Service, serve_forever
    from .server import Address

    with quiet():
        loaded = built_in(
            Wanted(
                model=Path(arguments.model),
                device=arguments.device,
                dtype=arguments.dtype,
                max_length=arguments.max_length,
                max_sequences=arguments.max_sequences,
                adapters=adapters,
            )
        )
    start_logging(arguments.log_level)
    paths = [None if path is None else Path(path) for path in (arguments.ssl_certfile, arguments.ssl_keyfile)]
    service = Service(
        name=arguments.served_model_name or _name(arguments.model),
        address=Address(arguments.host, arguments.port, *paths),
        key=arguments.api_key or os.environ.get(KEY_VARIABLE) or None,
        max_queue=arguments.max_queue,
        max_body=int(arguments.max_body_mb * 2**20),
        adapters=adapters,
    )
    serve_forever(loaded, service, lambda: note(f"{service.name} at {service.address.url}"))
    return 0


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise InputError(f"--adapter {text}: give NAME=DIR")
    return name, Path(folder)


def _name(model: str) -> str:
    return "m1-icd10" if Path(model) == EMBEDDED else Path(model).resolve().name
