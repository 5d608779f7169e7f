"""A look at a checkpoint's files before anything is allocated: every tensor there, of the right shape, readable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .configuration_baichuan_m1 import BaichuanM1Config
from .errors import CheckpointError, ConfigError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DERIVED = "rotary_emb.inv_freq"  # computed from the config here; older files store it
_FLOATS = {"F64", "F32", "F16", "BF16"}
_UNQUANTISED = (".conv_k", ".conv_v", "norm.weight")
_FETCH = "copy it again from the source"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ConfigError naming the file if it is missing or not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found: give a directory in the published format") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}): {_FETCH}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a JSON object: {_FETCH}")
    return content


def check_checkpoint(path: Any, model_class: type, kwargs: dict[str, Any]) -> None:
    """Compare the headers of a local directory's safetensors shards with what the config asks for.

    A name that is not a local directory is left to transformers.

    Raises:
        ConfigError: config.json cannot be used.
        CheckpointError: a shard is missing or corrupt, a tensor is missing or has another shape.
    """
    folder = Path(str(path))
    if not folder.is_dir():
        return
    folder = folder / (kwargs.get("subfolder") or "")
    config = kwargs.get("config")
    if not isinstance(config, BaichuanM1Config):
        config = BaichuanM1Config.from_dict(read_json(folder / "config.json"))
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            "quantization_config: a quantised checkpoint is for `ascend-m1` generate, chat and serve, or for vLLM: "
            "give the original one here"
        )
    shapes = stored_shapes(folder)
    expected = expected_shapes(config, model_class)
    prefix = getattr(model_class, "base_model_prefix", "")
    # A checkpoint of the base model has no prefix, one with a head has; either loads into either class.
    present = {name.removeprefix(f"{prefix}."): found for name, found in shapes.items()}
    known = {name.removeprefix(f"{prefix}.") for name in expected} | {"lm_head.weight"}
    for name, (_, shard) in shapes.items():
        if name.removeprefix(f"{prefix}.") not in known and not name.endswith(_DERIVED):
            raise CheckpointError(
                f"{shard}: tensor {name} has no place in a model of num_hidden_layers={config.num_hidden_layers}: "
                "use the config.json and the weights of one checkpoint"
            )
    for name, shape in expected.items():
        require_tensor(folder, name, shape, present.get(name.removeprefix(f"{prefix}.")))


def check_unquantised(folder: Path, model_class: type, config: BaichuanM1Config) -> None:
    """As ``check_checkpoint``, of a quantised directory's norms and filters, which no method quantises."""
    shapes = stored_shapes(folder, dtypes=None)
    for name, shape in expected_shapes(config, model_class).items():
        if name.endswith(_UNQUANTISED):
            require_tensor(folder, name, shape, shapes.get(name))


def expected_shapes(config: BaichuanM1Config, model_class: Any) -> dict[str, tuple[int, ...]]:
    """Of every tensor that the model has."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in model_class(config).state_dict().items()}


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
    shards = _shards(folder)
    shapes: dict[str, tuple[tuple[int, ...], Path]] = {}
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"{shard}: shard named by {_INDEX} not found: {_FETCH}")
        try:
            with safe_open(shard, framework="pt") as tensors:
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


def _shards(folder: Path) -> list[Path]:
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
    raise CheckpointError(f"{folder}: no {_SINGLE} and no {_INDEX}: give a directory in the published format")
