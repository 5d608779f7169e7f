"""A config.json to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parents[3] / "serve/deploy/config.json"
SMALL = SHIPPED.with_name("config.m1-icd10.json")


def content(path: Path = SHIPPED) -> dict[str, Any]:
    """Of a file that ships."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def change(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set the field at a dotted path, lists by number; ... removes it."""
    *outer, last = path.replace("[", ".").replace("]", "").split(".")
    block: Any = config
    for name in outer:
        block = block[int(name)] if name.isdigit() else block[name]
    if value is ...:
        del block[last]
    else:
        block[last] = value
    return config


def written(folder: Path, config: Any) -> Path:
    """As a file with the mode that MindIE wants."""
    path = folder / "conf" / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    path.chmod(0o640)
    return path
