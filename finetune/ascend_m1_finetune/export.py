"""An adapter merged into its base: a checkpoint in the published format, whole or not there at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.checkpoint_files import TEXT_FILES, copy_files, read_json
from ascend_m1.errors import CheckpointError, InputError
from ascend_m1.weights import check_checkpoint
from ascend_m1.writing import whole_folder, writing

from .lora import load_adapter
from .qlora import quantised_base, restore

SHARD = "5GB"
# Relative error of the merged model's logits. Rounding the merged weights costs about as much as computing in their
# dtype: 1 % with bfloat16 and a few layers. An adapter that is missing or wrong is off by what it does to the logits,
# and one that does less than twice the error is lost in it.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# What a checkpoint is beside its weights and config.json. The base's card and its measurements are of another model.
_TAKEN = (*TEXT_FILES, "*.py", "LICENSE*", "NOTICE*")
_REMOTE = "ascend_m1_remote"


@dataclass(frozen=True)
class Merged:
    """What the check found, as relative distances of logits: base to adapter, adapter to merged model, and the
    most that the latter may be."""

    effect: float
    error: float
    tolerance: float


def export(
    base: Path, adapter: Path, target: Path, tell: Callable[[str], None], dtype: torch.dtype | None = None
) -> Merged:
    """Merge, compare the logits with those of base and adapter, and write.

    Args:
        base: the checkpoint that the adapter was trained on, plain or quantised; the result is plain.
        adapter: a folder of PEFT's, of any kind that can be merged; trained filters included.
        target: must not exist, or be empty.
        tell: called with each step's name.
        dtype: of the result; None: the base's.

    Raises:
        InputError: the target is not empty, or there may be none.
        CheckpointError, ConfigError: base or adapter cannot be used, do not fit each other, or the merged model's
            logits differ.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: is not empty: give a new folder")
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        what = "may not be written to" if above.is_dir() else "is a file"
        raise InputError(f"{target}: cannot be made, for {above} {what}: give a folder elsewhere")
    tell(f"reading {base}")
    model = _read_base(base, dtype)
    probe = _probe(model)
    plain = _logits(model, probe)
    tell(f"merging {adapter}")
    adapted = load_adapter(model, adapter).eval()
    wanted = _logits(adapted, probe)
    merged: BaichuanM1ForCausalLM = adapted.merge_and_unload(safe_merge=True)
    tolerance = TOLERANCE[merged.dtype]
    found = Merged(_distance(plain, wanted), _distance(_logits(merged, probe), wanted), tolerance)
    if not (found.error <= tolerance and found.error <= found.effect / 2):
        less = "use it unmerged" if merged.dtype == torch.float32 else "give --dtype float32, or use it unmerged"
        raise CheckpointError(
            f"adapter {adapter}: merged, the logits differ by {found.error:.2%} (the adapter changes them by "
            f"{found.effect:.2%}): nothing is written: {_name(merged.dtype)} weights cannot hold it: {less}"
        )
    tell(f"writing {target}")
    _write(merged, base, target)
    return found


def _read_base(base: Path, dtype: torch.dtype | None) -> BaichuanM1ForCausalLM:
    config = read_json(base / "config.json")
    if not config.get("quantization_config"):
        wanted = dtype or "auto"
        model: BaichuanM1ForCausalLM = BaichuanM1ForCausalLM.from_pretrained(base, dtype=wanted, local_files_only=True)
        return model  # for evaluation
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), torch.float32)
    model = quantised_base(base, dtype or stored)
    restore(model)
    return model


def _probe(model: BaichuanM1ForCausalLM) -> Tensor:
    """Tokens [2, 64], the same each time."""
    return torch.randint(model.config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits(model: BaichuanM1ForCausalLM | PeftModel, probe: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=probe, use_cache=False).logits
    return logits.float()


def _distance(one: Tensor, other: Tensor) -> float:
    """Relative to ``other``. NaN, which no comparison lets pass, where one of them is not finite."""
    return float((one - other).norm() / other.norm())


def _write(merged: BaichuanM1ForCausalLM, base: Path, target: Path) -> None:
    """All of it or nothing."""
    with whole_folder(target) as beside, writing(target, beside, "or write elsewhere"):
        merged.save_pretrained(beside, max_shard_size=SHARD)
        _copy_others(base, beside, _name(merged.dtype))
        check_checkpoint(beside, BaichuanM1ForCausalLM, {})


def _copy_others(base: Path, folder: Path, dtype: str) -> None:
    """The base's tokenizer, templates, code, licence and config.json."""
    copy_files(base, folder, _TAKEN)
    config = read_json(base / "config.json")
    config.pop("quantization_config", None)
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    if "auto_map" not in config:
        config["auto_map"] = _write_remote_code(folder)
    _write_json(folder / "config.json", config)


def _write_remote_code(folder: Path) -> dict[str, str]:
    """For ``trust_remote_code`` without this package, and under older transformers; returns config.json's auto_map."""
    code = resources.files("ascend_m1_openmind").joinpath("baichuan_m1.py").read_text(encoding="utf-8")
    (folder / f"{_REMOTE}.py").write_text(code, encoding="utf-8")
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and (folder / "tokenizer.json").is_file():
        remote = {"auto_map": {"AutoTokenizer": [None, f"{_REMOTE}.BaichuanTokenizer"]}}
        _write_json(tokenizer, read_json(tokenizer) | remote)
    return {
        "AutoConfig": f"{_REMOTE}.BaichuanM1Config",
        "AutoModelForCausalLM": f"{_REMOTE}.BaichuanM1ForCausalLM",
    }


def _name(dtype: torch.dtype) -> str:
    """As config.json has it."""
    return str(dtype).removeprefix("torch.")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
