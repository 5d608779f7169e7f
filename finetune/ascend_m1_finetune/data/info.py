"""openMind's dataset-info files: the names of data sets, and where and in which form each lies."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_m1.errors import InputError

FORMS = ("alpaca", "sharegpt", "text", "preference")
_KEYS = ("hub_url", "local_path", "file_name", "formatting", "split", "num_samples", "columns", "tags")
# The columns of each form and their usual names; a form's first one must be there.
COLUMNS = {
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    },
    "sharegpt": {"messages": "conversations", "system": "system"},
    "text": {"text": "text"},
    "preference": {
        "prompt": "instruction",
        "query": "input",
        "chosen": "chosen",
        "rejected": "rejected",
        "system": "system",
    },
}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        file: JSON (a list of rows) or JSON lines.
        form: one of ``FORMS``.
        samples: how many rows to choose at random; None: all.
        columns, tags: what the file calls the columns and the roles of its form.
    """

    name: str
    file: Path
    form: str = "alpaca"
    samples: int | None = None
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=lambda: dict(TAGS))


def sources(names: str, info_files: str | None) -> list[Source]:
    """The data sets of a recipe.

    Args:
        names: ``dataset``, with commas.
        info_files: ``custom_dataset_info``, with commas; a later file's entry wins.

    Raises:
        InputError: a file cannot be read, or an entry is unknown or wrong.
    """
    entries: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in (info_files or "").split(","):
        if file.strip():
            path = Path(file.strip())
            entries |= {name: (path, entry) for name, entry in _read_info(path).items()}
    found = []
    for name in (part.strip() for part in names.split(",")):
        if name not in entries:
            near = difflib.get_close_matches(name, entries, 1)
            hint = f"did you mean {near[0]!r}?" if near else "describe it in a file and name that custom_dataset_info"
            raise InputError(f"dataset {name!r} is in no dataset-info file: {hint}")
        found.append(_source(name, *entries[name]))
    return found


def _read_info(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"custom_dataset_info {path}: {error.strerror}: give a readable file") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}): mend it") from None
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise InputError(f"{path}: give an object with an object for each data set")
    return content


def _source(name: str, info: Path, entry: dict[str, Any]) -> Source:
    where = f"{info}, {name}"
    for key in entry:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            raise InputError(f"{where}: unknown key {key!r}: {f'did you mean {near[0]!r}' if near else _KEYS}")
    if not all(isinstance(entry.get(key), str) for key in ("local_path", "file_name")):
        raise InputError(f"{where}: give local_path, a folder, and file_name, a .json or .jsonl in it")
    form = entry.get("formatting", "alpaca")
    if form not in FORMS:
        raise InputError(f"{where}: formatting={form!r}: give one of {', '.join(FORMS)}")
    file = info.parent / entry["local_path"] / entry["file_name"]  # an absolute local_path stands for itself
    if not file.is_file():
        raise InputError(f"{where}: there is no file {file}: mend local_path or file_name")
    samples = entry.get("num_samples")
    if samples is not None and (not isinstance(samples, int) or samples < 1):
        raise InputError(f"{where}: num_samples={samples!r}: give 1 or more")
    columns = _names(where, "columns", entry, COLUMNS[form])
    return Source(name, file, form, samples, columns, _names(where, "tags", entry, TAGS))


def _names(where: str, key: str, entry: dict[str, Any], usual: dict[str, str]) -> dict[str, str]:
    given = entry.get(key) or {}
    if not isinstance(given, dict):
        raise InputError(f"{where}: {key}={given!r}: give an object")
    for name in given:
        if name not in usual:
            known = ", ".join(f"{word} ({column})" for word, column in usual.items())
            raise InputError(f"{where}: {key} has {name!r}: known are {known}")
    return {**usual, **{name: str(value) for name, value in given.items() if value is not None}}
