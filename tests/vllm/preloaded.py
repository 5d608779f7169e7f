"""Imported by the process of which engines are forks, and how those make their workers; see ``limits.fork_engines``."""

import vllm.v1.engine.core
import vllm.v1.worker.cpu_worker  # noqa: F401

import ascend_m1_vllm.model  # noqa: F401

from .limits import fork_workers

fork_workers()
