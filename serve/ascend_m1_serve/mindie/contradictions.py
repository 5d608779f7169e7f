"""What contradicts what in a config.json; of values that are wrong by themselves nothing more is said."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ..server import load_certificate
from .checks import Findings
from .environment import Environment

_HTTPS = ("ServerConfig.httpsEnabled", "ServerConfig.ipAddress", "ServerConfig.managementIpAddress")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def check_server(server: Mapping[str, Any], environment: Environment, found: Findings) -> None:
    """Addresses, and what this server does not do."""
    for name, variable, given in (
        ("ipAddress", "MIES_CONTAINER_IP", environment.service_ip),
        ("managementIpAddress", "MIES_CONTAINER_MANAGEMENT_IP", environment.management_ip),
    ):
        value = given or server[name]
        try:
            unspecified = ip_address(value).is_unspecified
        except ValueError:
            source = f"environment variable {variable}" if given else f"ServerConfig.{name}"
            found.wrong(source, value, "give an IPv4 or IPv6 address")
            continue
        if unspecified and not server["allowAllZeroIpListening"]:
            found.wrong(f"ServerConfig.{name}", value, "set allowAllZeroIpListening to true to listen everywhere",
                        "ServerConfig.allowAllZeroIpListening")  # fmt: skip
    if server["inferMode"] == "dmi" or server["distDPServerEnabled"]:
        found.says("ServerConfig.inferMode: prefill and decode on separate servers are not served here: set inferMode "
                   "to 'standard' and distDPServerEnabled to false", "ServerConfig.inferMode")  # fmt: skip


def check_certificates(root: Path, server: Mapping[str, Any], prefixes: Collection[str], found: Findings) -> None:
    """The planes' pairs of certificate and key, by what their fields begin with; paths begin at ``root``."""
    for prefix in prefixes:
        names = (f"{prefix}Cert", f"{prefix}Pk")
        certificate, key = files = [root / server[name] for name in names]
        missing = [(name, file) for name, file in zip(names, files, strict=True) if not file.is_file()]
        for name, file in missing:
            found.wrong(f"ServerConfig.{name}", server[name], f"{file} is not there: give a PEM file, or set "
                        "httpsEnabled to false", *_HTTPS)  # fmt: skip
        if missing:
            continue
        try:
            load_certificate(certificate, key)
        except OSError as error:
            found.wrong(f"ServerConfig.{names[0]}", server[names[0]], f"{certificate} and {key} (from {names[1]}) "
                        f"cannot be used together ({error.strerror or error}): give PEM files, the key without a "
                        "password", f"ServerConfig.{names[1]}", *_HTTPS)  # fmt: skip


def check_backend(
    backend: Mapping[str, Any],
    deploy: Mapping[str, Any],
    schedule: Mapping[str, Any],
    model: Mapping[str, Any],
    visible: Sequence[str] | None,
    found: Findings,
) -> None:
    """Devices, model, schedule, adapters.

    Args:
        visible: devices that ASCEND_RT_VISIBLE_DEVICES names, which npuDeviceIds count from 0; None: all.
    """
    _check_devices(backend, model, visible, found)
    where, schedule_path = "BackendConfig.ModelDeployConfig.", "BackendConfig.ScheduleConfig."
    if not _NAME.fullmatch(model["modelName"]):
        found.wrong(f"{where}ModelConfig[0].modelName", model["modelName"], "letters, digits, . _ - and neither of the "
                    "last three at an end")  # fmt: skip
    if model["modelInstanceType"] == "StandardMock":
        found.wrong(f"{where}ModelConfig[0].modelInstanceType", "StandardMock", "this server has no pretended model: "
                    "give 'Standard', and the folder of m1-icd10 for a small one")  # fmt: skip
    if model["npuMemSize"] == 0:
        found.wrong(f"{where}ModelConfig[0].npuMemSize", 0, "give -1 (as much as there is) or gigabytes from 1 on")
    if model["cpuMemSize"] == 0 and schedule["maxPreemptCount"] > 0:
        found.wrong(f"{where}ModelConfig[0].cpuMemSize", 0, "needs maxPreemptCount=0: nothing can be swapped out",
                    f"{schedule_path}maxPreemptCount")  # fmt: skip
    if schedule["cacheBlockSize"] % 16:
        found.wrong(f"{schedule_path}cacheBlockSize", schedule["cacheBlockSize"], "give a multiple of 16")
    for name, block, block_path, of in (
        ("maxPrefillBatchSize", schedule, schedule_path, "maxBatchSize"),
        ("maxPreemptCount", schedule, schedule_path, "maxBatchSize"),
        ("maxN", schedule, schedule_path, "maxBatchSize"),
        ("maxIterTimes", deploy, where, "maxSeqLen"),
    ):
        if (schedule[name] or 0) > block[of]:
            found.wrong(f"{schedule_path}{name}", schedule[name], f"is more than {of}={block[of]}: lower it",
                        f"{block_path}{of}")  # fmt: skip
    if schedule["maxPrefillTokens"] < deploy["maxInputTokenLen"]:
        found.wrong(f"{schedule_path}maxPrefillTokens", schedule["maxPrefillTokens"], "is less than maxInputTokenLen="
                    f"{deploy['maxInputTokenLen']}: raise it", f"{where}maxInputTokenLen")  # fmt: skip
    if deploy["maxInputTokenLen"] > deploy["maxSeqLen"]:
        found.wrong(f"{where}maxInputTokenLen", deploy["maxInputTokenLen"], f"is more than maxSeqLen="
                    f"{deploy['maxSeqLen']}: lower it", f"{where}maxSeqLen")  # fmt: skip
    _check_adapters(deploy, model["modelName"], found)


def _check_adapters(deploy: Mapping[str, Any], model: str, found: Findings) -> None:
    path, modules, names = "BackendConfig.ModelDeployConfig.LoraModules", deploy["LoraModules"], set()
    name = "BackendConfig.ModelDeployConfig.ModelConfig[0].modelName"
    for index, entry in enumerate(modules):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "path")):
            found.says(f"{path}[{index}]: give an object with name, path and baseModelName", path)
            continue
        if entry["name"] in names or entry["name"] == model:
            found.wrong(f"{path}[{index}].name", entry["name"], "is taken: give each adapter a name of its own",
                        *([] if entry["name"] in names else [name]))  # fmt: skip
        names.add(entry["name"])
        if entry.get("baseModelName") not in (None, model):
            found.wrong(f"{path}[{index}].baseModelName", entry["baseModelName"], f"give modelName, {model!r}", name)
    most = deploy["maxLoras"]
    if most is not None and len(modules) > most:
        found.wrong("BackendConfig.ModelDeployConfig.maxLoras", most, f"LoraModules has {len(modules)}: raise it", path)


def _check_devices(
    backend: Mapping[str, Any], model: Mapping[str, Any], visible: Sequence[str] | None, found: Findings
) -> None:
    path, groups = "BackendConfig.npuDeviceIds", backend["npuDeviceIds"]
    ids = [number for group in groups if isinstance(group, list) for number in group]
    if not all(isinstance(group, list) for group in groups) or not all(type(i) is int and i >= 0 for i in ids):
        found.wrong(path, groups, "give a list with a list of device numbers for each instance")
        found.unusable.add(path)
        return
    if len(set(ids)) != len(ids):
        found.wrong(path, groups, "name a device once")
    if visible is not None and ids and max(ids) >= len(visible):
        found.wrong(path, groups, f"ASCEND_RT_VISIBLE_DEVICES={','.join(visible)} leaves {len(visible)} devices, which "
                    "are counted from 0: give numbers below that")  # fmt: skip
    if backend["modelInstanceNumber"] != len(groups):
        found.wrong("BackendConfig.modelInstanceNumber", backend["modelInstanceNumber"], f"npuDeviceIds has "
                    f"{len(groups)} lists: give as many", path)  # fmt: skip
    elif len(groups) != 1:
        found.wrong("BackendConfig.modelInstanceNumber", len(groups), "this server runs one: start one server for each",
                    path)  # fmt: skip
    if backend["multiNodesInferEnabled"]:
        found.wrong("BackendConfig.multiNodesInferEnabled", True, "one node: use vLLM for several, see docs/vllm.md")
    if groups and model["worldSize"] != len(groups[0]):
        found.wrong("BackendConfig.ModelDeployConfig.ModelConfig[0].worldSize", model["worldSize"], f"npuDeviceIds "
                    f"names {len(groups[0])} devices: give as many", path)  # fmt: skip
