"""The inference service: an engine, and the interfaces over HTTP."""

from ascend_m1 import __version__

__all__ = ["__version__"]
