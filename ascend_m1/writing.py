"""What a command writes: no leftovers and one line where a disk is full, and files that others may read, too."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from .errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TORCH = ("inline_container", "PytorchStreamWriter")  # in the RuntimeErrors of torch.save's writer


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder beside the target to write into, which gets the target's name at the end: all of it or nothing."""
    beside = target.with_name(f".{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)  # of a killed run
    beside.mkdir(parents=True)
    try:
        yield beside
        usual_modes(beside)
        os.replace(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def writing(name: Path, part: Path, again: str) -> Iterator[None]:
    """Around what writes ``part``, a folder or a file, which is removed where there is no room for it.

    Args:
        name: what the user calls it.
        again: what to do once there is space.

    Raises:
        CheckpointError: no space is left.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _no_space(error)
        if reason is None:
            raise
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
        raise CheckpointError(f"{name}: cannot be written ({reason}): free some space, {again}") from error


def _no_space(error: Exception) -> str | None:
    if isinstance(error, OSError):
        return error.strerror if error.errno in _FULL else None
    if isinstance(error, SafetensorError):
        return str(error)
    return "only a part of a file was taken" if any(word in str(error) for word in _TORCH) else None


def usual_modes(folder: Path) -> None:
    """safetensors and MindSpore make files for their owner alone: all get the mode that others in the folder have."""
    probe = folder / ".mode"
    probe.touch()  # as the umask says
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
