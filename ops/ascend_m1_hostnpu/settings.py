"""What the environment variables may say; checked before anything is loaded or started."""

from __future__ import annotations

from collections.abc import Mapping

from .products import SOC

_NUMBERS = ("HOSTNPU_DEVICES", "HOSTNPU_MEMORY_GIB", "HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT")
_FLAGS = ("HOSTNPU_POISON", "HOSTNPU_LAUNCHES")


class SettingError(ValueError):
    """A variable has a value that means nothing."""


def check(environment: Mapping[str, str]) -> None:
    """Refuse what has no meaning; an empty value is as none.

    Raises:
        SettingError: naming the variable, its value and what is allowed.
    """
    product = environment.get("HOSTNPU_PRODUCT") or "910B"
    if product not in SOC:
        raise SettingError(f"HOSTNPU_PRODUCT={product}: use one of {', '.join(SOC)}")
    for name in _NUMBERS:
        value = environment.get(name) or "1"
        if not (value.isascii() and value.isdecimal() and 1 <= int(value) <= 1_000_000):
            raise SettingError(f"{name}={value}: give a whole number of at least 1")
    for name in _FLAGS:
        if (value := environment.get(name) or "0") not in ("0", "1"):
            raise SettingError(f"{name}={value}: use 1 (on) or 0 (off)")


def is_on(environment: Mapping[str, str], flag: str) -> bool:
    """Whether a flag is set to 1."""
    return environment.get(flag) == "1"
