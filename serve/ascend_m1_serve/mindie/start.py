"""A config.json as an engine and a service."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ascend_m1.cli.checkpoint import open_checkpoint
from ascend_m1.device import npu_problem
from ascend_m1.errors import AscendM1Error, ConfigError, InputError

from ..api.mindie_common import MindieSettings
from ..engine.size import MOST_SEQUENCES
from ..engines import Wanted, parallel_sizes, rank_of
from ..run import Service
from .checks import Findings
from .config import MindieConfig, MindieConfigError, read_config
from .environment import Environment, check_permissions


def configured(file: str, environment: Environment) -> tuple[MindieConfig, Path]:
    """The file that was named, or the one of the environment. Raises InputError, ConfigError."""
    path = Path(file) if file else environment.config_file
    if path is None:
        raise InputError("--config without a file: name one, or set MIES_CONFIG_JSON_PATH")
    if environment.check_permissions and path.exists():
        check_permissions(path)
    return read_config(path, environment), path


def check_files(config: MindieConfig, path: Path) -> None:
    """Raises MindieConfigError where the file contradicts the checkpoint or the adapters that it names."""
    found, where = Findings(), "BackendConfig.ModelDeployConfig."
    try:
        context = open_checkpoint(str(config.model)).config.max_position_embeddings
    except AscendM1Error as error:
        found.wrong(f"{where}ModelConfig[0].modelWeightPath", str(config.model), str(error))
    else:
        _check_lengths(config, context, found)
    for index, folder in enumerate(config.adapters.values()):
        try:
            rank = rank_of(folder)
        except AscendM1Error as error:
            found.wrong(f"{where}LoraModules[{index}].path", str(folder), str(error))
            continue
        if config.max_adapter_rank is not None and rank > config.max_adapter_rank:
            found.wrong(
                f"{where}maxLoraRank", config.max_adapter_rank, f"LoraModules[{index}] has rank {rank}: raise it"
            )
    if found.problems:
        raise MindieConfigError(path, found.problems)


def _check_lengths(config: MindieConfig, context: int, found: Findings) -> None:
    if config.max_length <= context:  # no other length is above maxSeqLen
        return
    remedy = f"the checkpoint's context is {context}: give at most that"
    also = [
        name
        for name, value in (("maxInputTokenLen", config.max_input), ("ScheduleConfig.maxIterTimes", config.max_new))
        if value > context or value == config.max_length - 1  # max_input is one less than maxInputTokenLen may be
    ]
    remedy += f", as {' and '.join(also)} must be, too" if also else ""
    found.wrong("BackendConfig.ModelDeployConfig.maxSeqLen", config.max_length, remedy)


def chosen_device(config: MindieConfig, path: Path, asked: str) -> tuple[str, str | None]:
    """Of the built-in engine, by name, and the reason if it is not the file's. ``asked``: by --device, comes first.

    Raises:
        ConfigError: this machine is meant to have NPUs, for torch-npu is installed, but they cannot be used.
    """
    if asked != "auto" or not config.devices:
        return asked, None
    problem = npu_problem()
    if problem is None:
        return f"npu:{config.devices[0]}", None
    text = f"{path}: BackendConfig.npuDeviceIds={[[*config.devices]]}: {problem}"
    if find_spec("torch_npu") is not None:
        raise ConfigError(f"{text}: give --device cpu")
    return asked, text


def wanted_engine(
    config: MindieConfig, path: Path, environment: Environment, several: bool, device: str = "auto"
) -> Wanted:
    """Raises ConfigError if it needs more than one device and the engine does not run on ``several``."""
    if len(config.devices) > 1 and not several:
        raise ConfigError(
            f"{path}: BackendConfig.ModelDeployConfig.ModelConfig[0].worldSize={len(config.devices)}: the built-in "
            "engine runs on one device: give 1, or add --engine vllm"
        )
    tensor, pipeline = parallel_sizes(config.model, len(config.devices)) if several and config.devices else (1, 1)
    return Wanted(
        model=config.model,
        device=device,
        max_length=config.max_length,
        max_sequences=config.max_sequences if several else min(config.max_sequences, MOST_SEQUENCES),
        kv_cache_gib=None if config.npu_memory == -1 else config.npu_memory,
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
