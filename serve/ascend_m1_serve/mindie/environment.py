"""Environment variables that users of MindIE Service set, each honoured or refused in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ascend_m1.errors import InputError

_LEVELS = {"DEBUG": "debug", "INFO": "info", "WARN": "warning", "WARNING": "warning", "ERROR": "error",
           "CRITICAL": "error", "NULL": "error"}  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """What the variables say.

    Attributes:
        config_file: MIES_CONFIG_JSON_PATH, else conf/config.json below MIES_INSTALL_PATH or MINDIE_LLM_HOME_PATH.
        service_ip, management_ip: MIES_CONTAINER_IP and MIES_CONTAINER_MANAGEMENT_IP, before the configured ones.
        monitor: MIES_SERVICE_MONITOR_MODE, opens /metrics.
        check_permissions: MINDIE_CHECK_INPUTFILES_PERMISSION, of config.json.
        log_level: MINDIE_LOG_LEVEL in this server's words.
    """

    config_file: Path | None = None
    service_ip: str | None = None
    management_ip: str | None = None
    monitor: bool = False
    check_permissions: bool = True
    log_level: str = "info"


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
