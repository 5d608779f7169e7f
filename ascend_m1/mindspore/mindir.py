"""Both graphs as MindIR files with what belongs to them in one folder, and back, without the model's code.

    mindir.json            what the graphs take, see ``_FIELDS``
    prefill.mindir         (ids, start, n, *state) -> (logits, *state), with its weights
    decode.mindir          (ids, pos, *state) -> (logits, *state), with its weights
    config.json            the checkpoint's, with the context and the dtype that were exported
    generation_config.json, tokenizer…    copies from the checkpoint

MindSpore writes more than 1 GB as NAME_graph.mindir and a folder NAME_variables.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore
import numpy as np
from mindspore import Tensor, int32, nn

from ..checkpoint_files import TEXT_FILES, copy_files, read_json
from ..configuration_baichuan_m1 import BaichuanM1Config
from ..errors import CheckpointError, DeviceError
from .device import DTYPES, Device
from .runner import Graphs
from .state import state_shapes

if TYPE_CHECKING:
    from .model import Core

MANIFEST = "mindir.json"
_FIELDS = {"prefill": str, "decode": str, "chunk": int, "capacity": int, "dtype": str, "fused": bool, "state": list}


def export(core: Core, source: Path, folder: Path, chunk: int) -> None:
    """Write what ``load`` reads, the manifest last.

    Args:
        core: the model.
        source: the checkpoint directory, for configuration and tokenizer.
        folder: an empty one, see ``writing.whole_folder``.
        chunk: tokens that prefill takes at once.
    """
    from .model import Decode, Prefill

    shapes = state_shapes(core.config, core.capacity)
    state = [Tensor(np.zeros(shape, np.float32), core.dtype) for shape in shapes]
    one, ids = Tensor([1], int32), Tensor(np.zeros((1, chunk)), int32)
    manifest = {
        "prefill": _write(Prefill(core), (ids, one, one, *state), folder / "prefill"),
        "decode": _write(Decode(core), (Tensor([[0]], int32), one, *state), folder / "decode"),
        "chunk": chunk,
        "capacity": core.capacity,
        "dtype": next(name for name, dtype in DTYPES.items() if dtype == core.dtype),
        "fused": core.fused,
        "state": shapes,
        "mindspore": mindspore.__version__,
    }
    copy_files(source, folder, TEXT_FILES)
    config = read_json(source / "config.json")
    config |= {"max_position_embeddings": core.capacity, "dtype": manifest["dtype"]}
    config.pop("torch_dtype", None)  # its older name
    _write_json(config, folder / "config.json")
    _write_json(manifest, folder / MANIFEST)


def _write(cell: nn.Cell, inputs: tuple[Tensor, ...], path: Path) -> str:
    """Name of the file to load."""
    mindspore.export(cell, *inputs, file_name=str(path), file_format="MINDIR")
    split = path.with_name(f"{path.name}_graph.mindir")
    return split.name if split.exists() else f"{path.name}.mindir"


def _write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(folder: Path, device: Device) -> Graphs:
    """The graphs of a folder that ``export`` wrote.

    Raises:
        ConfigError, CheckpointError: the manifest or a graph is missing, damaged, or does not fit config.json.
        DeviceError: they were exported for another device.
    """
    path, config = folder / MANIFEST, BaichuanM1Config.from_dict(read_json(folder / "config.json"))
    manifest = read_json(path)
    capacity = config.max_position_embeddings
    right: dict[str, Any] = {"capacity": capacity, "state": state_shapes(config, capacity)}
    for name, kind in _FIELDS.items():
        value = manifest.get(name)
        if type(value) is not kind or (name == "chunk" and manifest[name] < 1) or value != right.get(name, value):
            raise CheckpointError(f"{path}: field {name}={value!r} does not fit: export the model again")
    if manifest["fused"] and not device.fused:
        raise DeviceError(f"{path}: exported on an Ascend NPU, with its operators: export it on this machine")
    if manifest["dtype"] != device.dtype:
        raise DeviceError(f"{path}: exported in {manifest['dtype']}, asked for {device.dtype}: export it again")
    prefill, decode = (Loaded(folder / manifest[name]) for name in ("prefill", "decode"))
    return Graphs(prefill, decode, (manifest["chunk"],), capacity, right["state"], manifest["dtype"])


class Loaded(nn.GraphCell):  # type: ignore[misc, unused-ignore]
    """A graph from a file.

    Raises:
        CheckpointError: the file cannot be read; called: the graph takes other inputs than the manifest says.
    """

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(mindspore.load(str(path)))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path}: cannot be loaded ({reason}): export it again") from None
        self.set_jit_config(mindspore.JitConfig(jit_level="O0"))  # as ``model.compiled``
        self.path = path

    def __call__(self, *inputs: Tensor) -> Any:
        try:
            return super().__call__(*inputs)
        except (RuntimeError, ValueError):
            if self.compile_cache:  # it took these shapes: what failed is running it
                raise
            raise CheckpointError(f"{self.path}: does not take what {MANIFEST} says: export it again") from None
