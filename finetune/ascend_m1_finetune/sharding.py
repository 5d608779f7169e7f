"""Weights sharded over processes on CPUs, for which accelerate has no setting of its own.

FSDP: ``AcceleratorState.__init__`` takes a plugin for the types of devices in its list, and ``MULTI_CPU`` is not among
them: the model would be wrapped in DDP. All that follows (``fully_shard``, norms, checkpoints) looks only at
``distributed_type`` and ``fsdp_plugin`` of the state, and torch's FSDP2 runs over gloo.

DeepSpeed: ``PartialState.__init__`` starts its communication on devices only. Without it DeepSpeed takes each process
for the only one, and its check of the batch size fails.
"""

from __future__ import annotations

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import TrainingArguments

from ascend_m1.errors import InputError


def check_sharding(arguments: TrainingArguments) -> None:
    """Raises InputError where nothing would be sharded, or not by FSDP2."""
    on_cpu = arguments.device.type == "cpu"
    for name in ("fsdp", "deepspeed"):
        if getattr(arguments, name) and arguments.world_size == 1 and (on_cpu or name == "fsdp"):
            raise InputError(
                f"{name} in one process: it shards over several: start them with torchrun, or leave it out"
            )
    if arguments.fsdp and on_cpu and arguments.fsdp_plugin_args["fsdp_version"] != 2:
        raise InputError("fsdp on CPUs by FSDP1: say fsdp_config: {version: 2}")


def start_deepspeed(arguments: TrainingArguments) -> None:
    """DeepSpeed's communication, where accelerate has not started it."""
    if arguments.deepspeed and arguments.device.type == "cpu":
        import deepspeed  # an option of its own

        deepspeed.init_distributed(dist_backend="gloo")


def shard_on_cpus(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Put into the state what accelerate puts there on devices."""
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.fsdp_plugin = plugin
    # Both: each call of AcceleratorState() takes over PartialState's fields.
    accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
