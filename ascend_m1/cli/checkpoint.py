"""A checkpoint directory's configuration and tokenizer, checked step by step. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from ..checkpoint_files import read_json
from ..configuration_baichuan_m1 import BaichuanM1Config
from ..errors import AscendM1Error, CheckpointError, ConfigError, TokenizerError
from ..sampling import SamplingOptions, honoured
from ..tokenization_baichuan_m1 import BaichuanM1Tokenizer, check_vocabulary


@dataclass(frozen=True)
class Checkpoint:
    """A directory whose configuration and tokenizer fit each other."""

    path: Path
    config: BaichuanM1Config
    tokenizer: Any


def read_config(directory: str) -> BaichuanM1Config:
    """The configuration in a local directory; no name is ever looked up in a network.

    Raises:
        CheckpointError: there is no such directory, or it is an adapter's.
        ConfigError: config.json cannot be used.
    """
    path = Path(directory)
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise CheckpointError(f"model {directory} {what}: give the directory that holds config.json")
    if not (path / "config.json").is_file() and (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"model {directory} is an adapter: give it as --adapter, or merge it into its base with `ascend-m1 export`"
        )
    content = read_json(path / "config.json")
    kind = content.get("model_type", BaichuanM1Config.model_type)
    if kind != BaichuanM1Config.model_type:
        raise ConfigError(
            f"{path / 'config.json'}: model_type={kind!r}: give a checkpoint of {BaichuanM1Config.model_type}"
        )
    try:
        config: BaichuanM1Config = BaichuanM1Config.from_dict(content)
    except ConfigError as error:  # it knows the field, not the file
        raise ConfigError(f"{path / 'config.json'}: {str(error).removeprefix('config.json: ')}") from None
    except Exception as error:  # a field of a type that transformers does not expect
        raise ConfigError(
            f"{path / 'config.json'}: cannot be used ({type(error).__name__}: {error}): copy it again from the source"
        ) from error
    return config


def open_checkpoint(directory: str) -> Checkpoint:
    """Everything but the weights.

    Raises:
        ConfigError, CheckpointError, TokenizerError: one line with the file, what is wrong and what to do.
    """
    config = read_config(directory)
    path = Path(directory)
    _check_generation_config(path / GENERATION_CONFIG_NAME, config)
    tokenizer = _read_tokenizer(path)
    check_vocabulary(tokenizer, config)
    return Checkpoint(path, config, tokenizer)


def generation_defaults(checkpoint: Checkpoint) -> GenerationConfig:
    """What counts of its generation_config.json, or of config.json where there is none, as in transformers."""
    if (checkpoint.path / GENERATION_CONFIG_NAME).is_file():
        return honoured(GenerationConfig.from_pretrained(checkpoint.path, local_files_only=True))
    return honoured(GenerationConfig.from_model_config(checkpoint.config))


def is_quantised(checkpoint: Checkpoint) -> bool:
    """Whether its layers' matrices are whole numbers."""
    return getattr(checkpoint.config, "quantization_config", None) is not None


def _read_tokenizer(path: Path) -> Any:
    try:
        return BaichuanM1Tokenizer.from_pretrained(path, local_files_only=True)
    except AscendM1Error:
        raise
    except Exception as error:  # JSON of another shape makes transformers fail in any way
        raise TokenizerError(
            f"{path}: tokenizer.json or tokenizer_config.json cannot be used ({type(error).__name__}: {error}): "
            "copy them again from the source"
        ) from error


def _check_generation_config(path: Path, config: BaichuanM1Config) -> None:
    if not path.is_file():
        return
    content = read_json(path)
    names = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
    try:
        SamplingOptions(**{name: content[name] for name in names if content.get(name) is not None})
        # The token ids follow the rules of config.json.
        tokens = {name: content[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id") if name in content}
        BaichuanM1Config(**{**config.to_dict(), **tokens})
        GenerationConfig.from_dict(content).validate()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {error}: correct the value or remove the file") from None
