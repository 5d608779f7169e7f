"""Errors of the service beside those of the model (``ascend_m1.errors``)."""

from __future__ import annotations

from ascend_m1.errors import AscendM1Error


class EngineError(RuntimeError):
    """The engine does not work any more, or takes nothing any more."""


class UnknownModelError(AscendM1Error):
    """A request names a model or an adapter that is not served."""


class BusyError(RuntimeError):
    """The request cannot be taken now.

    Attributes:
        stopping: the service will not take it later either.
    """

    def __init__(self, message: str, stopping: bool = False) -> None:
        super().__init__(message)
        self.stopping = stopping
