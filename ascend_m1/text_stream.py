"""Tokens to text as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Emit = Callable[[str], object]


class TextStream:
    """Sends the text of new tokens on; a character whose bytes are not all there yet waits."""

    def __init__(self, tokenizer: Any, emit: Emit) -> None:
        self.tokenizer, self.emit = tokenizer, emit
        self.ids: list[int] = []
        self._start = self._read = 0  # ids before _read are out; _start gives the tokenizer some context

    def take(self, ids: Sequence[int]) -> None:
        """The next tokens."""
        self.ids += ids
        self._send(final=False)

    def end(self) -> None:
        """Send what was held back."""
        self._send(final=True)

    def _send(self, final: bool) -> None:
        before = self._decode(self.ids[self._start : self._read])
        now = self._decode(self.ids[self._start :])
        if now.endswith("\ufffd") and not final:
            return
        new = now[len(before) :]
        self._start, self._read = self._read, len(self.ids)
        if new:
            self.emit(new)

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text
