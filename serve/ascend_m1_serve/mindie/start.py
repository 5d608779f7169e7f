"""A config.json as an engine and a service."""

from __future__ import annotations

from pathlib import Path

from ascend_m1.device import npu_problem
from ascend_m1.errors import ConfigError, InputError

from ..api.mindie_common import MindieSettings
from ..engine.size import MOST_SEQUENCES
from ..engines import Wanted, parallel_sizes
from ..run import Service
from .config import MindieConfig, read_config
from .environment import Environment, check_permissions


def configured(file: str, environment: Environment) -> tuple[MindieConfig, Path]:
    """The file that was named, or the one of the environment. Raises InputError, ConfigError."""
    path = Path(file) if file else environment.config_file
    if path is None:
        raise InputError("--config without a file: name one, or set MIES_CONFIG_JSON_PATH")
    if environment.check_permissions and path.exists():
        check_permissions(path)
    return read_config(path, environment), path


def wanted_engine(config: MindieConfig, path: Path, environment: Environment, several: bool) -> Wanted:
    """Raises ConfigError if it needs more than one device and the engine does not run on ``several``."""
    if len(config.devices) > 1 and not several:
        raise ConfigError(
            f"{path}: BackendConfig.ModelDeployConfig.ModelConfig[0].worldSize={len(config.devices)}: the built-in "
            "engine runs on one device: give 1, or add --engine vllm"
        )
    tensor, pipeline = parallel_sizes(config.model, len(config.devices)) if several and config.devices else (1, 1)
    return Wanted(
        model=config.model,
        device=f"npu:{config.devices[0]}" if config.devices and npu_problem() is None else "auto",
        max_length=config.max_length,
        max_sequences=config.max_sequences if several else min(config.max_sequences, MOST_SEQUENCES),
        chunk=min(config.prefill_tokens, 512),
        adapters=config.adapters,
        max_adapters=config.max_adapters,
        max_adapter_rank=config.max_adapter_rank,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        devices=config.devices,
        memory_fraction=environment.memory_fraction,
    )


def wanted_service(config: MindieConfig, environment: Environment, key: str | None) -> Service:
    """The planes on their addresses, and MindIE's limits."""
    return Service(
        name=config.name,
        addresses={"service": config.service, "management": config.management, "metrics": config.metrics},
        key=key,
        max_queue=2 * config.max_links,
        max_body=config.max_body,
        adapters=config.adapters,
        max_input=config.max_input,
        truncate=config.truncate,
        max_new=config.max_new,
        max_choices=config.max_choices,
        tell_times=environment.benchmark,
        settings=MindieSettings(
            token_timeout=config.token_timeout,
            whole_timeout=config.whole_timeout,
            full_text=config.full_text,
            monitor=environment.monitor,
            world_size=max(1, len(config.devices)),
            prefill_tokens=config.prefill_tokens,
            prefill_batch=config.prefill_batch,
            cpu_memory=config.cpu_memory,
            npu_memory=config.npu_memory,
            folder=config.model.name,
        ),
    )
