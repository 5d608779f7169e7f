"""The rows of a JSON or JSON-lines file, each with the line that it begins on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ascend_m1.errors import InputError

Row = tuple[str, dict[str, Any]]  # "FILE, line N", for messages, and the row


def rows(path: Path) -> Iterator[Row]:
    """Every row, in order. JSON lines are read one by one, a JSON list as a whole.

    Raises:
        InputError: with file and line.
    """
    return _list_rows(path) if _is_list(path) else _line_rows(path)


def _is_list(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return next((line.lstrip()[0] for line in file if line.strip()), "") == "["


def _line_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                text = data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
                if text:
                    yield where, _object(where, json.loads(text))
            except UnicodeDecodeError as error:
                raise InputError(f"{where}: byte {error.start} is not valid UTF-8: convert the file") from None
            except json.JSONDecodeError as error:
                hint = "mend it" if text.startswith("{") else "give a JSON list or JSON lines"  # a table, say
                raise InputError(f"{where}: not JSON ({error.msg}, character {error.colno}): {hint}") from None


def _list_rows(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not valid UTF-8: convert the file") from None
    decoder, at, line, counted, before = json.JSONDecoder(), text.index("[") + 1, 1, 0, "["
    while True:
        at = _skip_white(text, at)
        line, counted = line + text.count("\n", counted, at), at
        where = f"{path}, line {line}"
        if at >= len(text):
            raise InputError(f"{where}: the list does not end: the file is cut off")
        if text[at] == "]" and before != ",":
            break
        if before == "row":
            if text[at] != ",":
                raise InputError(f"{where}: no comma after a row: put one between each two")
            at, before = at + 1, ","
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg}): mend it") from None
        before = "row"
        yield where, _object(where, value)
    end = _skip_white(text, at + 1)
    if end < len(text):
        line += text.count("\n", counted, end)
        raise InputError(f"{path}, line {line}: something follows the list's end: make one list of it, or JSON lines")


def _skip_white(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a row must be an object, not {type(value).__name__}")
    return value
