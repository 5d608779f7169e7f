"""Errors of the service beside those of the model (``ascend_m1.errors``)."""

from __future__ import annotations


class EngineError(RuntimeError):
    """The engine does not work any more, or takes nothing any more."""
