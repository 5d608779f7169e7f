"""Limits of vLLM's CPU platform that a test lifts in its own process."""

from __future__ import annotations

from multiprocessing import set_forkserver_preload
from typing import Any


def fork_workers() -> None:
    """Workers that need no imports of their own: the platform insists on new processes."""
    from vllm import envs

    envs.environment_variables["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "fork"


def fork_engines() -> None:
    """Engines that need none either: forks of one process that has imported ``preloaded``, as their workers are."""
    from vllm import envs

    set_forkserver_preload(["tests.vllm.preloaded"])
    envs.environment_variables["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "forkserver"


def schedule_asynchronously() -> None:
    """The platform turns asynchronous scheduling off, for there is no device to keep busy; it works, though."""
    from vllm.platforms.cpu import CpuPlatform

    update = CpuPlatform.check_and_update_config

    def keep(vllm_config: Any) -> None:
        update(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = staticmethod(keep)
