"""vLLM's hook for one architecture, asked in its front process, so that a refusal ends the output."""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from .refusal import refusing


class StartChecks(VerifyAndUpdateConfig):
    """Imports the model when it is asked for one, not before."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """See ``checks.check_start``; what it refuses is raised as ``StartError``."""
        from .checks import check_start

        with refusing():
            check_start(vllm_config)
