"""Environment variables that users of MindIE Service set, each honoured or refused in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ascend_m1.errors import InputError

_LEVELS = {"DEBUG": "debug", "INFO": "info", "WARN": "warning", "WARNING": "warning", "ERROR": "error",
           "CRITICAL": "error", "NULL": "error"}  # fmt: skip
# The log goes to stderr; prompts that cannot fit are refused before their tokens are counted; one node; no profiler.
_IDLE = (
    *("MINDIE_LOG_TO_STDOUT", "MINDIE_LOG_TO_FILE", "MINDIE_LOG_PATH", "MINDIE_LOG_ROTATE", "MINDIE_LOG_VERBOSE"),
    *("TOKENIZER_ENCODE_TIMEOUT", "DYNAMIC_AVERAGE_WINDOW_SIZE", "MINDIE_LLM_BENCHMARK_FILEPATH"),
    *("MIES_MEMORY_DETECTOR_MODE", "MIES_PROFILER_MODE", "MINDIE_ASYNC_SCHEDULING_ENABLE"),
    *("HOST_IP", "RANKTABLEFILE", "RANK_TABLE_FILE"),
)


@dataclass(frozen=True)
class Environment:
    """What the variables say.

    Attributes:
        config_file: MIES_CONFIG_JSON_PATH, else conf/config.json below MIES_INSTALL_PATH or MINDIE_LLM_HOME_PATH.
        service_ip, management_ip: MIES_CONTAINER_IP and MIES_CONTAINER_MANAGEMENT_IP, before the configured ones.
        monitor: MIES_SERVICE_MONITOR_MODE, opens /metrics.
        check_permissions: MINDIE_CHECK_INPUTFILES_PERMISSION, of config.json.
        log_level: MINDIE_LOG_LEVEL in this server's words.
        benchmark: MINDIE_LLM_BENCHMARK_ENABLE, chat answers tell the times of their tokens.
        memory_fraction: NPU_MEMORY_FRACTION, for vLLM. visible_devices: of ASCEND_RT_VISIBLE_DEVICES; None: all.
        idle: other variables of MindIE that are set, and have no effect here.
    """

    config_file: Path | None = None
    service_ip: str | None = None
    management_ip: str | None = None
    monitor: bool = False
    check_permissions: bool = True
    log_level: str = "info"
    benchmark: bool = False
    memory_fraction: float | None = None
    visible_devices: tuple[str, ...] | None = None
    idle: tuple[str, ...] = ()


def read_environment(variables: Mapping[str, str]) -> Environment:
    """Raises InputError for a value that a variable cannot have."""
    given = {name: value for name, value in variables.items() if value}
    install = given.get("MIES_INSTALL_PATH") or given.get("MINDIE_LLM_HOME_PATH")
    file = given.get("MIES_CONFIG_JSON_PATH")
    return Environment(
        config_file=Path(file) if file else Path(install) / "conf" / "config.json" if install else None,
        service_ip=given.get("MIES_CONTAINER_IP"),
        management_ip=given.get("MIES_CONTAINER_MANAGEMENT_IP"),
        monitor=_switch(given, "MIES_SERVICE_MONITOR_MODE", False),
        check_permissions=_switch(given, "MINDIE_CHECK_INPUTFILES_PERMISSION", True),
        log_level=_level(given.get("MINDIE_LOG_LEVEL", "INFO")),
        benchmark=given.get("MINDIE_LLM_BENCHMARK_ENABLE") in ("1", "2"),
        memory_fraction=_fraction(given.get("NPU_MEMORY_FRACTION")),
        visible_devices=_devices(given.get("ASCEND_RT_VISIBLE_DEVICES")),
        idle=tuple(name for name in _IDLE if name in given),
    )


def check_permissions(path: Path) -> None:
    """MindIE's rule for config.json: no link, and nothing for others. Raises InputError."""
    if path.is_symlink():
        raise InputError(
            f"{path}: is a symbolic link: give the file itself, or set MINDIE_CHECK_INPUTFILES_PERMISSION=0"
        )
    mode = path.stat().st_mode & 0o777
    if mode & ~0o640:
        raise InputError(
            f"{path}: mode {mode:o} is wider than 640: chmod 640, or set MINDIE_CHECK_INPUTFILES_PERMISSION=0"
        )


def _switch(given: Mapping[str, str], name: str, default: bool) -> bool:
    value = given.get(name)
    if value is None:
        return default
    if value.lower() not in ("0", "1", "true", "false"):
        raise InputError(f"environment variable {name}={value!r}: give 0 or 1")
    return value.lower() in ("1", "true")


def _level(text: str) -> str:
    """Of a text such as "INFO" or "server:DEBUG; llm:INFO", whose last one counts for everything here."""
    level = text.split(";")[-1].split(":")[-1].strip().upper()
    if level not in _LEVELS:
        raise InputError(f"environment variable MINDIE_LOG_LEVEL={text!r}: give one of {', '.join(_LEVELS)}")
    return _LEVELS[level]


def _fraction(text: str | None) -> float | None:
    if text is None:
        return None
    if not re.fullmatch(r"0?\.\d+|1(\.0*)?", text) or float(text) == 0:
        raise InputError(f"environment variable NPU_MEMORY_FRACTION={text!r}: give a number above 0, at most 1")
    return float(text)


def _devices(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    found = tuple(part.strip() for part in text.split(","))
    if not all(part.isascii() and part.isdigit() for part in found) or len(set(found)) != len(found):
        raise InputError(f"environment variable ASCEND_RT_VISIBLE_DEVICES={text!r}: give numbers as '0,1', each once")
    return found
