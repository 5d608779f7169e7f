"""A row in the form of its data set, as the messages of a conversation or as plain text."""

from __future__ import annotations

from typing import Any

from ascend_m1.errors import InputError

from .info import Source

Message = dict[str, str]  # role: system, user, assistant, tool; and content
Conversation = list[Message]


def conversation(source: Source, where: str, row: dict[str, Any]) -> Conversation | str:
    """What the row holds: messages that end with the assistant's, or plain text.

    Raises:
        InputError: with ``where``, the file and line.
    """
    form = {"alpaca": _alpaca, "sharegpt": _sharegpt, "preference": _preference}.get(source.form)
    return _text(source, where, row, "text", needed=True) if form is None else form(source, where, row)


def _alpaca(source: Source, where: str, row: dict[str, Any]) -> Conversation:
    answer = _text(source, where, row, "response", needed=True)
    return [*_question(source, where, row), {"role": "assistant", "content": answer}]


def _preference(source: Source, where: str, row: dict[str, Any]) -> Conversation:
    """The chosen answer; supervised training has no use for the rejected one, which is checked all the same."""
    _text(source, where, row, "rejected", needed=True)
    chosen = _text(source, where, row, "chosen", needed=True)
    return [*_question(source, where, row), {"role": "assistant", "content": chosen}]


def _question(source: Source, where: str, row: dict[str, Any]) -> Conversation:
    messages: Conversation = []
    system = _text(source, where, row, "system")
    if system:
        messages.append({"role": "system", "content": system})
    history = row.get(source.columns.get("history", "")) or []
    if not isinstance(history, list):
        raise InputError(f"{where}: {source.columns['history']}: give a list of [question, answer]")
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) and text for text in turn):
            raise InputError(f"{where}: {source.columns['history']}: {turn!r}: give a question and an answer")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    parts = [_text(source, where, row, "prompt", needed=True), _text(source, where, row, "query")]
    return [*messages, {"role": "user", "content": "\n".join(part for part in parts if part)}]


def _sharegpt(source: Source, where: str, row: dict[str, Any]) -> Conversation:
    tags, column = source.tags, source.columns["messages"]
    roles = {
        tags["user_tag"]: "user",
        tags["assistant_tag"]: "assistant",
        tags["system_tag"]: "system",
        tags["observation_tag"]: "tool",
        tags["function_tag"]: "assistant",
    }
    if column not in row:
        raise InputError(
            f"{where}: {column} is missing: give a list of turns, or name it otherwise by columns and tags, see "
            "docs/finetune.md"
        )
    turns = row[column]
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where}: {column}: give a list of turns")
    messages: Conversation = []
    system = _text(source, where, row, "system")
    if system:
        messages.append({"role": "system", "content": system})
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise InputError(
                f"{where}: turn {number}: give an object with {tags['role_tag']} and {tags['content_tag']}"
            )
        role, text = turn.get(tags["role_tag"]), turn.get(tags["content_tag"])
        if role not in roles:
            raise InputError(f"{where}: turn {number}: {tags['role_tag']}={role!r}: give one of {', '.join(roles)}")
        if not isinstance(text, str) or not text:
            raise InputError(f"{where}: turn {number}: {tags['content_tag']} is missing or no text")
        _check_order(where, number, messages, roles[role])
        messages.append({"role": roles[role], "content": text})
    if messages[-1]["role"] != "assistant":
        raise InputError(f"{where}: the last turn is no answer: end with {tags['assistant_tag']}")
    return messages


def _check_order(where: str, number: int, before: Conversation, role: str) -> None:
    last = before[-1]["role"] if before else None
    allowed = {None: ("system", "user"), "system": ("user",), "assistant": ("user", "tool")}.get(last, ("assistant",))
    if role not in allowed:
        raise InputError(f"{where}: turn {number}: {role} after {last or 'nothing'}: expected {' or '.join(allowed)}")


def _text(source: Source, where: str, row: dict[str, Any], column: str, needed: bool = False) -> str:
    name = source.columns[column]
    value = row.get(name)
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or (needed and not value):
        raise InputError(f"{where}: {name} {'is missing or empty' if not value else 'is no text'}: give some text")
    return value
