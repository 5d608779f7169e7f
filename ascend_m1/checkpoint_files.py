"""The files of a checkpoint directory: JSON, and the headers of its safetensors shards, compared with the config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .configuration_baichuan_m1 import BaichuanM1Config
from .errors import CheckpointError, ConfigError

# What a tokenizer may consist of, and how the checkpoint generates.
TEXT_FILES = ("token*", "*tokens*.json", "vocab*", "merges.txt", "chat_template*", "generation_config.json")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MINDIR = "mindir.json"  # of ``mindspore.mindir``, which imports MindSpore
_FLOATS = {"F64", "F32", "F16", "BF16"}
_DERIVED = "rotary_emb.inv_freq"  # computed from the config here; older files store it
_FETCH = "copy it again from the source"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ConfigError naming the file if it is missing, cannot be read or is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found: give a directory in the published format") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): change its owner or mode") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}): {_FETCH}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a JSON object: {_FETCH}")
    return content


def copy_files(source: Path, target: Path, patterns: Sequence[str]) -> None:
    """The files of a folder whose names match one of the patterns, into another folder."""
    for path in source.iterdir():
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in patterns):
            shutil.copyfile(path, target / path.name)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of an adapter of PEFT's. Raises CheckpointError if the folder has none, ConfigError."""
    path = folder / "adapter_config.json"
    try:
        found, exists = path.is_file(), folder.is_dir()
    except OSError as error:  # its name is too long, or it may not be looked into
        raise CheckpointError(f"adapter {folder} cannot be read ({error.strerror}): give another folder") from None
    if not found:
        what = "holds no" if exists else "is not a directory: give the folder that holds"
        hint = ": give an adapter's folder, as `ascend-m1 train` or PEFT writes it" if exists else ""
        raise CheckpointError(f"adapter {folder} {what} adapter_config.json{hint}")
    return read_json(path)


def published_shapes(config: BaichuanM1Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the published format."""
    hidden, wide = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config.vocab_size, hidden),
    }
    for index, spec in enumerate(config.layer_specs):
        name = f"model.layers.{index}"
        shapes |= {
            f"{name}.input_layernorm.weight": (hidden,),
            f"{name}.post_attention_layernorm.weight": (hidden,),
            f"{name}.self_attn.W_pack.weight": (spec.q_size + 2 * spec.kv_size, hidden),
            f"{name}.self_attn.o_proj.weight": (hidden, spec.q_size),
            f"{name}.self_attn.conv_k": (1, 1, spec.kv_heads, 1, config.conv_window),
            f"{name}.self_attn.conv_v": (1, 1, spec.kv_heads, 1, config.conv_window),
            f"{name}.mlp.gate_proj.weight": (wide, hidden),
            f"{name}.mlp.up_proj.weight": (wide, hidden),
            f"{name}.mlp.down_proj.weight": (hidden, wide),
        }
    return shapes


def check_tensors(
    folder: Path, expected: dict[str, tuple[int, ...]], config: BaichuanM1Config, prefix: str = ""
) -> dict[str, tuple[tuple[int, ...], Path]]:
    """Compare the headers of a directory's shards with the tensors that a model has.

    Args:
        expected: their shapes by name.
        prefix: of names, may be there or not.

    Returns:
        What ``stored_shapes`` does.

    Raises:
        CheckpointError: a shard is missing or corrupt, a tensor is missing, unknown or has another shape.
    """
    stored = stored_shapes(folder)
    present = {name.removeprefix(prefix): found for name, found in stored.items()}
    known = {name.removeprefix(prefix) for name in expected} | {"lm_head.weight"}
    for name, (_, shard) in stored.items():
        if name.removeprefix(prefix) not in known and not name.endswith(_DERIVED):
            raise CheckpointError(
                f"{shard}: tensor {name} has no place in a model of num_hidden_layers={config.num_hidden_layers}: "
                "use the config.json and the weights of one checkpoint"
            )
    for name, shape in expected.items():
        require_tensor(folder, name, shape, present.get(name.removeprefix(prefix)))
    return stored


def require_tensor(folder: Path, name: str, shape: tuple[int, ...], found: tuple[tuple[int, ...], Path] | None) -> None:
    """Raises CheckpointError unless a tensor was found, and of this shape; ``found`` is from ``stored_shapes``."""
    if found is None:
        raise CheckpointError(f"{folder}: tensor {name} is missing from its shards: {_FETCH}")
    if found[0] != shape:
        raise CheckpointError(
            f"{found[1]}: tensor {name} has shape {list(found[0])}, config.json asks for {list(shape)}: "
            "use the config.json and the weights of one checkpoint"
        )


def stored_shapes(folder: Path, dtypes: set[str] | None = _FLOATS) -> dict[str, tuple[tuple[int, ...], Path]]:
    """Shape and file of every tensor in a directory's safetensors shards, from their headers alone.

    Args:
        dtypes: those that are taken, in safetensors' words; None: all.
    """
    shapes: dict[str, tuple[tuple[int, ...], Path]] = {}
    for shard in shards(folder):
        if not shard.is_file():
            raise CheckpointError(f"{shard}: shard named by {_INDEX} not found: {_FETCH}")
        try:
            with safe_open(shard, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a dict)
                    stored = tensors.get_slice(name)
                    if dtypes is not None and stored.get_dtype() not in dtypes:
                        raise CheckpointError(
                            f"{shard}: tensor {name} is stored as {stored.get_dtype()}: give a checkpoint in float32, "
                            "bfloat16 or float16"
                        )
                    shapes[name] = (tuple(stored.get_shape()), shard)
        except SafetensorError as error:
            raise CheckpointError(f"{shard}: truncated or corrupt ({error}): {_FETCH}") from None
    return shapes


def shards(folder: Path) -> list[Path]:
    """A directory's weight files. Raises CheckpointError if it names none, or a place elsewhere."""
    if (folder / _INDEX).is_file():
        weight_map = read_json(folder / _INDEX).get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(name, str) and Path(name).name == name for name in weight_map.values())
        ):
            raise CheckpointError(f"{folder / _INDEX}: no weight_map of tensors to files: {_FETCH}")
        return sorted({folder / name for name in weight_map.values()})
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _MINDIR).is_file():
        raise CheckpointError(
            f"{folder}: no {_SINGLE}, but MindIR: run it with `ascend-m1 generate --backend mindspore`, or give the "
            "checkpoint that it was exported from"
        )
    raise CheckpointError(f"{folder}: no {_SINGLE} and no {_INDEX}: give a directory in the published format")
