"""Token ids to text as they come: characters are never cut, and text that may become a stop string waits.

Knows the tokenizer; knows nothing of requests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_CUT = "\ufffd"  # what a tokenizer writes for bytes that are no character, or not one yet
_MOST_HELD = 64  # tokens; a character has four bytes, more than this are no text, and all are decoded at each step
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer:
    """Incremental decoding of one answer.

    Args:
        tokenizer: a transformers tokenizer.
        skip_special_tokens: leave the names of special tokens out.
    """

    def __init__(self, tokenizer: Any, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids: list[int] = []
        self._start = self._read = 0  # ids before _read are out; from _start on they give the tokenizer some context

    def add(self, ids: Sequence[int]) -> str:
        """The text that the ids complete."""
        self._ids += ids
        return self._new(final=False)

    def finish(self) -> str:
        """What waited for bytes that never came."""
        return self._new(final=True)

    def _new(self, final: bool) -> str:
        before = self._decode(self._ids[self._start : self._read])
        now = self._decode(self._ids[self._start :])
        if now.endswith(_CUT) and not final and len(self._ids) - self._read < _MOST_HELD:
            return ""
        self._start, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skip)
        return text


class StopStrings:
    """Ends an answer at the first stop string; holds back what may be the beginning of one.

    Args:
        strings: non-empty.
        include: the stop string belongs to the answer.
    """

    def __init__(self, strings: Sequence[str], include: bool = False) -> None:
        self._strings, self._include = tuple(strings), include
        self._held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """The text that is certain now; after a stop string was found, nothing more."""
        if self.found is not None:
            return ""
        if not self._strings:
            return text
        self._held += text
        hits = [(at, stop) for stop in self._strings if (at := self._held.find(stop)) >= 0]
        if hits:
            at, self.found = min(hits, key=lambda hit: (hit[0], len(hit[1])))
            return self._held[: at + len(self.found) * self._include]
        keep = max(self._overlap(stop) for stop in self._strings)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def finish(self) -> str:
        """What was held back."""
        out, self._held = ("" if self.found is not None else self._held), ""
        return out

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins ``stop``."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


def token_text(tokenizer: Any, token: int) -> tuple[str, list[int]]:
    """A single token as text and as UTF-8 bytes; bytes that are no character alone show as U+FFFD."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:  # a row of the model's head that the tokenizer has no name for
        return "", []
    matched = _BYTE.fullmatch(piece)
    data = bytes([int(matched[1], 16)]) if matched else piece.replace("▁", " ").encode("utf-8")
    return data.decode("utf-8", errors="replace"), list(data)
