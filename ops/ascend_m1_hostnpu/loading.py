"""Loads the host NPU into this process: the stand-in libraries, then an answer behind every symbol."""

from __future__ import annotations

import os

from . import hccl, launches, operators, streams, triton
from .operator import refuse_the_rest

streams.install()
hccl.install()
triton.install()
operators.load()
refuse_the_rest()
if "HOSTNPU_LAUNCHES" in os.environ:
    launches.report_at_exit()
