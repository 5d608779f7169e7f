"""Why a start was refused, as the last line of vLLM's output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class StartError(RuntimeError):
    """What cannot be served, in one line.

    No ``ValueError`` as the errors of ``ascend_m1`` are: vLLM asks within pydantic, which puts a ``ValueError`` into a
    message of its own that ends with an address.
    """


@contextmanager
def refusing() -> Iterator[None]:
    """Errors of ``ascend_m1`` become ``StartError``; also a decorator."""
    from ascend_m1.errors import AscendM1Error

    try:
        yield
    except AscendM1Error as error:
        raise StartError(str(error)) from None
