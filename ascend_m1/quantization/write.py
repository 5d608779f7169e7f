"""A checkpoint into a quantised one, shard by shard: what is done stays done if it is interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, tensor

from ..checkpoint_files import read_json, stored_shapes
from ..configuration_baichuan_m1 import BaichuanM1Config
from ..errors import CheckpointError, InputError
from .packing import PACKED, SCALE, SHAPE, describe, pack
from .scheme import Scheme, is_target, quantise

_PROGRESS = ".quantizing.json"  # in the target until it is whole: options, and digests of the sources done
_INDEX = "model.safetensors.index.json"
_SKIPPED = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf")


def quantise_checkpoint(source: Path, target: Path, scheme: Scheme, tell: Callable[[int, int], None]) -> None:
    """Write ``target``, which holds at most one shard in memory at a time.

    Args:
        source: a checkpoint in the published format, not quantised.
        target: a new folder, or one that an interrupted call with the same arguments left.
        tell: called with the shards done and all of them.

    Raises:
        InputError: the target holds something else, the source has changed since, or the group does not fit.
        CheckpointError, ConfigError: the source cannot be used, or the target not written.
    """
    config = read_json(source / "config.json")
    BaichuanM1Config.from_dict(dict(config))
    if config.get("quantization_config"):
        raise InputError(f"{source}: is quantised already: give the original checkpoint")
    shards = sorted({shard for _, shard in stored_shapes(source).values()})
    job = {"bits": scheme.bits, "group": scheme.group, "shards": [shard.name for shard in shards]}
    done = _begin(target, job)
    for number, shard in enumerate(shards):
        tell(number, len(shards))
        digest = _digest(shard)
        if shard.name not in done:
            _write_shard(shard, target / shard.name, scheme)
            done[shard.name] = digest
            _write_text(target / _PROGRESS, json.dumps({**job, "done": done}))
        elif done[shard.name] != digest:
            raise InputError(f"{shard}: has changed since {target} was begun: remove {target}, or give a new folder")
    tell(len(shards), len(shards))
    _finish(source, target, config, scheme, [shard.name for shard in shards])


def _digest(path: Path) -> str:
    """Read once for this and, from the system's cache, once for its tensors: little beside rounding them."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest()


def _begin(target: Path, job: dict[str, Any]) -> dict[str, str]:
    """The shards that are done and the digests of their sources."""
    marker = target / _PROGRESS
    if target.exists() and any(target.iterdir()):
        if not marker.exists():
            raise InputError(f"{target}: is not empty: give a new folder")
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
            done: dict[str, str] = found.pop("done", {})
        except (ValueError, AttributeError, TypeError):  # no JSON, no object
            raise InputError(f"{marker}: is damaged: remove {target}, or give a new folder") from None
        if found != job:
            raise InputError(f"{target}: was begun with other options or other shards: remove it, or give a new folder")
        return done
    target.mkdir(parents=True, exist_ok=True)
    _write_text(marker, json.dumps(job))
    return {}


def _write_shard(source: Path, target: Path, scheme: Scheme) -> None:
    stored: dict[str, Tensor] = {}
    with safe_open(source, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  not a dict
            weight = file.get_tensor(name)
            if not is_target(name):
                stored[name] = weight
                continue
            numbers, scales = quantise(weight, scheme, name)
            stored[f"{name}{PACKED}"] = pack(numbers, scheme.bits)
            stored[f"{name}{SCALE}"] = scales
            stored[f"{name}{SHAPE}"] = tensor(weight.shape)
    beside = target.with_name(f".{target.name}.part")  # one name, so that a killed run leaves nothing for ever
    try:
        save_file(stored, beside, metadata={"format": "pt"})
        beside.chmod(source.stat().st_mode & 0o777)
        os.replace(beside, target)
    except SafetensorError as error:
        raise CheckpointError(f"{target}: cannot be written ({error}): free some space, then run it again") from None
    finally:
        beside.unlink(missing_ok=True)


def _finish(source: Path, target: Path, config: dict[str, Any], scheme: Scheme, shards: list[str]) -> None:
    """What makes the folder a checkpoint comes last."""
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(_SKIPPED) and path.name != "config.json":
            shutil.copyfile(path, target / path.name)
    if shards != ["model.safetensors"]:
        total = sum((target / name).stat().st_size for name in shards)
        index = {"metadata": {"total_size": total}, "weight_map": _weight_map(target, shards)}
        _write_text(target / _INDEX, json.dumps(index, indent=2))
    _write_text(target / "config.json", json.dumps({**config, "quantization_config": describe(scheme)}, indent=2))
    (target / _PROGRESS).unlink()


def _weight_map(folder: Path, shards: list[str]) -> dict[str, str]:
    """Which file each tensor is in."""
    found: dict[str, str] = {}
    for shard in shards:
        try:
            with safe_open(folder / shard, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), shard)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / shard}: {error}: remove the folder and begin anew") from None
    return found


def _write_text(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
