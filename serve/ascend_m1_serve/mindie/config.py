"""MindIE's config.json: read, checked as a whole, and reduced to what this server does with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_m1.errors import ConfigError

from ..front import MOST_CHOICES
from ..server import Address
from . import fields
from .checks import Findings, check_block
from .contradictions import check_backend, check_certificates, check_server
from .environment import Environment

_LARGEST = 10 * 2**20
_BLOCKS = (
    ("ServerConfig", fields.SERVER),
    ("BackendConfig", fields.BACKEND),
    ("LogConfig", fields.LOG),
)


class MindieConfigError(ConfigError):
    """A config.json that cannot be used.

    Attributes:
        problems: each in one line.
    """

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__(f"{path}: " + "; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class MindieConfig:
    """What a server is to be.

    Attributes:
        service, management, metrics: the planes' addresses; equal ones share a server.
        model: checkpoint folder. name: as clients call it.
        devices: NPUs of the model. adapters: PEFT folders by name. max_adapters: None: as many as these.
        max_adapter_rank: None: their largest.
        max_length, max_input: tokens of a sequence and of a prompt. truncate: -1 keeps a long prompt's beginning, 1 its
            end, 0 refuses it.
        max_new: tokens of an answer. max_sequences: at the same time. max_choices: answers to a prompt.
        token_timeout, whole_timeout: seconds between tokens, and of a request. max_body: bytes.
        full_text: events repeat the answer so far.
        idle: keys that are set and have no effect here.
    """

    service: Address
    management: Address
    metrics: Address
    model: Path
    name: str
    devices: tuple[int, ...]
    adapters: dict[str, Path]
    max_adapters: int | None
    max_adapter_rank: int | None
    max_length: int
    max_input: int
    truncate: int
    max_new: int
    max_sequences: int
    max_choices: int
    max_links: int
    token_timeout: int
    whole_timeout: int
    max_body: int
    full_text: bool
    prefill_tokens: int
    prefill_batch: int
    cpu_memory: int
    npu_memory: int
    idle: tuple[str, ...]


def read_config(path: Path, environment: Environment) -> MindieConfig:
    """A config.json. Relative paths of certificates begin at the installation that the file belongs to.

    Raises:
        MindieConfigError: with every problem that was found.
        ConfigError: the file cannot be read as JSON.
    """
    found = Findings()
    content = _read(path)
    top = check_block("", content, fields.TOP, found)
    blocks = {name: _block(name, top[name], block, found) for name, block in _BLOCKS}
    backend = blocks["BackendConfig"]
    where = "BackendConfig."
    deploy = _block(f"{where}ModelDeployConfig", backend["ModelDeployConfig"], fields.DEPLOY, found)
    schedule = _block(f"{where}ScheduleConfig", backend["ScheduleConfig"], fields.SCHEDULE, found)
    model = _only_model(deploy["ModelConfig"], f"{where}ModelDeployConfig.ModelConfig", found)
    server = blocks["ServerConfig"]
    check_block("ServerConfig.HealthCheckConfig.", server.get("HealthCheckConfig") or {}, fields.HEALTH, found)
    root, planes = path.resolve().parent.parent, _planes(server, environment)  # of {installation}/conf/config.json
    check_server(server, environment, found)
    if server["httpsEnabled"]:
        check_certificates(root, server, dict.fromkeys(prefix for _, _, prefix in planes), found)
    check_backend(backend, deploy, schedule, model, environment.visible_devices, found)
    if found.problems:
        raise MindieConfigError(path, found.problems)
    return _reduced(
        [_address(root, server, *plane) for plane in planes], server, backend, deploy, schedule, model, found
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if not 0 < size <= _LARGEST:
            raise ConfigError(f"{path}: has {size} bytes: give a file of 1 byte to 10 MB")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: give a readable config.json") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}): correct it") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a JSON object: give one with ServerConfig and BackendConfig")
    return content


def _block(path: str, content: Any, of: Mapping[str, fields.Field], found: Findings) -> dict[str, Any]:
    """Its values; the defaults of one that is not there, which has been said of the block."""
    if isinstance(content, dict):
        return check_block(f"{path}.", content, of, found)
    return check_block("", {}, of, Findings())


def _only_model(models: Any, path: str, found: Findings) -> dict[str, Any]:
    if not isinstance(models, list) or len(models) != 1 or not isinstance(models[0], dict):
        if models is not None:
            found.problems.append(f"{path}: give a list of one object: this server holds one model")
        found.unusable.add(path)
        return _block(path, None, fields.MODEL, found)
    return check_block(f"{path}[0].", models[0], fields.MODEL, found)


def _planes(server: Mapping[str, Any], environment: Environment) -> list[tuple[str, int, str]]:
    """Host, port, and what the fields of its certificate begin with: of the service, management and metrics planes."""
    host = environment.service_ip or server["ipAddress"]
    inner = environment.management_ip or server["managementIpAddress"]
    return [
        (host, server["port"], "tls"),
        (inner, server["managementPort"], "tls" if inner == host else "managementTls"),
        (inner, server["metricsPort"], "tls" if inner == host else "metricsTls"),
    ]


def _address(root: Path, server: Mapping[str, Any], host: str, port: int, prefix: str) -> Address:
    if not server["httpsEnabled"]:
        return Address(host, port)
    return Address(host, port, root / server[f"{prefix}Cert"], root / server[f"{prefix}Pk"])


def _reduced(
    planes: Sequence[Address],
    server: Mapping[str, Any],
    backend: Mapping[str, Any],
    deploy: Mapping[str, Any],
    schedule: Mapping[str, Any],
    model: Mapping[str, Any],
    found: Findings,
) -> MindieConfig:
    service, management, metrics = planes
    return MindieConfig(
        service=service,
        management=management,
        metrics=metrics,
        model=Path(model["modelWeightPath"]),
        name=model["modelName"],
        devices=tuple(backend["npuDeviceIds"][0]),
        adapters={entry["name"]: Path(entry["path"]) for entry in deploy["LoraModules"]},
        max_adapters=deploy["maxLoras"],
        max_adapter_rank=deploy["maxLoraRank"],
        max_length=deploy["maxSeqLen"],
        max_input=min(deploy["maxInputTokenLen"], deploy["maxSeqLen"] - 1),
        truncate=_truncate(deploy["truncation"]),
        max_new=schedule["maxIterTimes"],
        max_sequences=schedule["maxBatchSize"],
        max_choices=schedule["maxN"] or MOST_CHOICES,
        max_links=server["maxLinkNum"],
        token_timeout=server["tokenTimeout"],
        whole_timeout=server["e2eTimeout"],
        max_body=server["maxRequestLength"] * 2**20,
        full_text=server["fullTextEnabled"],
        prefill_tokens=schedule["maxPrefillTokens"],
        prefill_batch=schedule["maxPrefillBatchSize"] or schedule["maxBatchSize"],
        cpu_memory=model["cpuMemSize"],
        npu_memory=model["npuMemSize"],
        idle=tuple(sorted(found.idle)),
    )


def _truncate(value: bool | int) -> int:
    """MindIE's -1 and true cut at the right, 1 at the left, 0 and false refuse."""
    return -1 if value is True else int(value)
