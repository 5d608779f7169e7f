"""MindIE's config.json: read, checked as a whole, and reduced to what this server does with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ascend_m1.errors import ConfigError

from ..server import Address
from . import fields
from .checks import Findings, check_block
from .environment import Environment

_LARGEST = 10 * 2**20
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
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
        max_length, max_input: tokens of a sequence and of a prompt. truncate: -1 keeps a long prompt's beginning, 1 its
            end, 0 refuses it.
        max_new: tokens of an answer. max_sequences: at the same time.
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
    max_length: int
    max_input: int
    truncate: int
    max_new: int
    max_sequences: int
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
    blocks = {
        name: check_block(f"{name}.", top[name], block, found) if isinstance(top[name], dict) else {}
        for name, block in _BLOCKS
    }
    backend = blocks["BackendConfig"]
    where = "BackendConfig."
    deploy = check_block(f"{where}ModelDeployConfig.", backend.get("ModelDeployConfig") or {}, fields.DEPLOY, found)
    schedule = check_block(f"{where}ScheduleConfig.", backend.get("ScheduleConfig") or {}, fields.SCHEDULE, found)
    model = _only_model(deploy["ModelConfig"], f"{where}ModelDeployConfig.ModelConfig", found)
    if not found.problems:  # what contradicts what can be said only of values that are right by themselves
        _check_server(blocks["ServerConfig"], environment, found)
        _check_backend(backend, deploy, schedule, model, found)
    if found.problems:
        raise MindieConfigError(path, found.problems)
    return _reduced(path, environment, blocks["ServerConfig"], backend, deploy, schedule, model, found)


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


def _only_model(models: Any, path: str, found: Findings) -> dict[str, Any]:
    if not isinstance(models, list) or len(models) != 1 or not isinstance(models[0], dict):
        if models is not None:
            found.problems.append(f"{path}: give a list of one object: this server holds one model")
        return {}
    return check_block(f"{path}[0].", models[0], fields.MODEL, found)


def _check_server(server: Mapping[str, Any], environment: Environment, found: Findings) -> None:
    for name, variable, given in (
        ("ipAddress", "MIES_CONTAINER_IP", environment.service_ip),
        ("managementIpAddress", "MIES_CONTAINER_MANAGEMENT_IP", environment.management_ip),
    ):
        value = given or server[name]
        if value is None:
            continue
        try:
            unspecified = ip_address(value).is_unspecified
        except ValueError:
            source = f"environment variable {variable}" if given else f"ServerConfig.{name}"
            found.wrong(source, value, "give an IPv4 or IPv6 address")
            continue
        if unspecified and not server["allowAllZeroIpListening"]:
            found.wrong(f"ServerConfig.{name}", value, "set allowAllZeroIpListening to true to listen everywhere")
    if server["inferMode"] == "dmi" or server["distDPServerEnabled"]:
        found.problems.append("ServerConfig.inferMode: prefill and decode on separate servers are not served here: "
                              "set inferMode to 'standard' and distDPServerEnabled to false")  # fmt: skip


def _check_backend(
    backend: Mapping[str, Any],
    deploy: Mapping[str, Any],
    schedule: Mapping[str, Any],
    model: Mapping[str, Any],
    found: Findings,
) -> None:
    _check_devices(backend, model, found)
    where = "BackendConfig.ModelDeployConfig."
    if not _NAME.fullmatch(model["modelName"]):
        found.wrong(f"{where}ModelConfig[0].modelName", model["modelName"], "letters, digits, . _ - and neither of the "
                    "last three at an end")  # fmt: skip
    if model["modelInstanceType"] == "StandardMock":
        found.wrong(f"{where}ModelConfig[0].modelInstanceType", "StandardMock", "this server has no pretended model: "
                    "give 'Standard', and the folder of m1-icd10 for a small one")  # fmt: skip
    if model["npuMemSize"] == 0:
        found.wrong(f"{where}ModelConfig[0].npuMemSize", 0, "give -1 (as much as there is) or gigabytes from 1 on")
    if model["cpuMemSize"] == 0 and schedule["maxPreemptCount"] > 0:
        found.wrong(f"{where}ModelConfig[0].cpuMemSize", 0, "needs maxPreemptCount=0: nothing can be swapped out")
    schedule_path = "BackendConfig.ScheduleConfig."
    if schedule["cacheBlockSize"] % 16 and schedule["cacheBlockSize"] != 1:
        found.wrong(f"{schedule_path}cacheBlockSize", schedule["cacheBlockSize"], "give a multiple of 16")
    for name, most, of in (
        ("maxPrefillBatchSize", schedule["maxBatchSize"], "maxBatchSize"),
        ("maxPreemptCount", schedule["maxBatchSize"], "maxBatchSize"),
        ("maxIterTimes", deploy["maxSeqLen"], "maxSeqLen"),
    ):
        if schedule[name] > most:
            found.wrong(f"{schedule_path}{name}", schedule[name], f"is more than {of}={most}: lower it")
    if schedule["maxPrefillTokens"] < deploy["maxInputTokenLen"]:
        found.wrong(f"{schedule_path}maxPrefillTokens", schedule["maxPrefillTokens"], "is less than maxInputTokenLen="
                    f"{deploy['maxInputTokenLen']}: raise it")  # fmt: skip
    if deploy["maxInputTokenLen"] > deploy["maxSeqLen"]:
        found.wrong(f"{where}maxInputTokenLen", deploy["maxInputTokenLen"], f"is more than maxSeqLen="
                    f"{deploy['maxSeqLen']}: lower it")  # fmt: skip
    _check_adapters(deploy, model["modelName"], found)


def _check_adapters(deploy: Mapping[str, Any], model: str, found: Findings) -> None:
    path, modules, names = "BackendConfig.ModelDeployConfig.LoraModules", deploy["LoraModules"], set()
    for index, entry in enumerate(modules):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "path")):
            found.problems.append(f"{path}[{index}]: give an object with name, path and baseModelName")
            continue
        if entry["name"] in names or entry["name"] == model:
            found.wrong(f"{path}[{index}].name", entry["name"], "is taken: give each adapter a name of its own")
        names.add(entry["name"])
        if entry.get("baseModelName", model) != model:
            found.wrong(f"{path}[{index}].baseModelName", entry["baseModelName"], f"give modelName, {model!r}")
    most = deploy["maxLoras"]
    if most is not None and len(modules) > most:
        found.wrong("BackendConfig.ModelDeployConfig.maxLoras", most, f"LoraModules has {len(modules)}: raise it")


def _check_devices(backend: Mapping[str, Any], model: Mapping[str, Any], found: Findings) -> None:
    path, groups = "BackendConfig.npuDeviceIds", backend["npuDeviceIds"]
    ids = [number for group in groups if isinstance(group, list) for number in group]
    if not all(isinstance(group, list) for group in groups) or not all(type(i) is int and i >= 0 for i in ids):
        found.wrong(path, groups, "give a list with a list of device numbers for each instance")
        return
    if len(set(ids)) != len(ids):
        found.wrong(path, groups, "name a device once")
    if backend["modelInstanceNumber"] != len(groups):
        found.wrong("BackendConfig.modelInstanceNumber", backend["modelInstanceNumber"], f"npuDeviceIds has "
                    f"{len(groups)} lists: give as many")  # fmt: skip
    elif len(groups) != 1:
        found.wrong("BackendConfig.modelInstanceNumber", len(groups), "this server runs one: start one server for each")
    if backend["multiNodesInferEnabled"]:
        found.wrong("BackendConfig.multiNodesInferEnabled", True, "one node: use vLLM for several, see docs/vllm.md")
    if groups and model["worldSize"] != len(groups[0]):
        found.wrong("BackendConfig.ModelDeployConfig.ModelConfig[0].worldSize", model["worldSize"], f"npuDeviceIds "
                    f"names {len(groups[0])} devices: give as many")  # fmt: skip


def _reduced(
    path: Path,
    environment: Environment,
    server: Mapping[str, Any],
    backend: Mapping[str, Any],
    deploy: Mapping[str, Any],
    schedule: Mapping[str, Any],
    model: Mapping[str, Any],
    found: Findings,
) -> MindieConfig:
    host = environment.service_ip or server["ipAddress"]
    inner = environment.management_ip or server["managementIpAddress"] or host
    root = path.resolve().parent.parent  # of {installation}/conf/config.json

    def address(host: str, port: int, plane: str) -> Address:
        if not server["httpsEnabled"]:
            return Address(host, port)
        return Address(host, port, root / server[f"{plane}Cert"], root / server[f"{plane}Pk"])

    return MindieConfig(
        service=address(host, server["port"], "tls"),
        management=address(inner, server["managementPort"], "tls" if inner == host else "managementTls"),
        metrics=address(inner, server["metricsPort"], "tls" if inner == host else "metricsTls"),
        model=Path(model["modelWeightPath"]),
        name=model["modelName"],
        devices=tuple(backend["npuDeviceIds"][0]),
        adapters={entry["name"]: Path(entry["path"]) for entry in deploy["LoraModules"]},
        max_adapters=deploy["maxLoras"],
        max_length=deploy["maxSeqLen"],
        max_input=min(deploy["maxInputTokenLen"], deploy["maxSeqLen"] - 1),
        truncate=_truncate(deploy["truncation"]),
        max_new=schedule["maxIterTimes"],
        max_sequences=schedule["maxBatchSize"],
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
