"""A block of config.json against its fields: every problem found, one line each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from .fields import Field

_KINDS = {int: "a whole number", str: "a text", bool: "true or false", list: "a list", dict: "an object"}


class Findings:
    """What was found wrong, and which keys this server does not need.

    Attributes:
        unusable: paths of fields and blocks without a value that can be used: what contradicts it cannot be said.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.idle: list[str] = []
        self.unusable: set[str] = set()

    def wrong(self, path: str, value: object, remedy: str, *beside: str) -> None:
        """A field with a value that cannot be used, by itself or ``beside`` others; not if one of them is unusable."""
        self.says(f"{path}={value!r}: {remedy}", path, *beside)

    def says(self, problem: str, *paths: str) -> None:
        """A problem of the fields at ``paths``; not if one of them, or a block around it, is unusable."""
        if not any(f"{path}.".startswith((f"{one}.", f"{one}[")) for path in paths for one in self.unusable):
            self.problems.append(problem)


def check_block(path: str, content: Mapping[str, Any], fields: Mapping[str, Field], found: Findings) -> dict[str, Any]:
    """The block's values, defaults for what is missing or wrong; null counts as missing.

    Args:
        path: of the block, with a dot at its end; empty at the top.
        found: takes the problems.
    """
    values: dict[str, Any] = {}
    for name in content:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            found.problems.append(f"{path}{name} is not known: {f'do you mean {near[0]}?' if near else 'remove it'}")
    for name, field in fields.items():
        value = content.get(name)
        if value is None:
            if field.required:
                found.problems.append(f"{path}{name} is missing: {_wanted(field)}")
                found.unusable.add(f"{path}{name}")
            values[name] = field.default
            continue
        fits = _fits(value, field)
        if not fits:
            found.wrong(f"{path}{name}", value, _wanted(field))
            found.unusable.add(f"{path}{name}")
        elif not field.used:
            found.idle.append(f"{path}{name}")
        values[name] = value if fits else field.default
    return values


def _fits(value: object, field: Field) -> bool:
    kinds = field.kind if isinstance(field.kind, tuple) else (field.kind,)
    if type(value) not in kinds:  # a bool is an int to isinstance
        return False
    if field.choices is not None:
        return value in field.choices
    if field.pattern is not None:
        return re.fullmatch(field.pattern[0], str(value)) is not None
    size = len(value) if isinstance(value, str) else value
    if not isinstance(size, int) or isinstance(size, bool):
        return True
    return (field.low is None or size >= field.low) and (field.high is None or size <= field.high)


def _wanted(field: Field) -> str:
    if field.choices is not None:
        return f"give {' or '.join(repr(choice) for choice in field.choices)}"
    if field.pattern is not None:
        return f"give {field.pattern[1]}"
    kinds = field.kind if isinstance(field.kind, tuple) else (field.kind,)
    what = " or ".join(_KINDS[kind] for kind in kinds)
    if field.low is None:
        return f"give {what}"
    unit = " characters" if field.kind is str else ""
    return f"give {what}, {field.low} to {field.high}{unit}"
