"""One answer of the engine as text, with the times that a server measures."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .protocol import Event, Logprob, Stream
from .text import Detokenizer, StopStrings

Reason = Literal["stop_token", "stop_string", "length", "abort"]


@dataclass(frozen=True)
class Piece:
    """News of an answer.

    Attributes:
        text: new and final; may be empty.
        tokens: new ones, the end token and those of a stop string included.
        logprobs: of each new token, see ``protocol.Event``.
        offsets: for each new token, characters of the answer before its own text; tokens of one character share it.
        reason: why it is the last piece; None: more will come.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[tuple[Logprob, ...], ...] = ()
    offsets: tuple[int, ...] = ()
    reason: Reason | None = None


@dataclass
class Times:
    """Of one answer, in seconds on the monotonic clock.

    Attributes:
        tokens: when each event came.
    """

    submitted: float = field(default_factory=time.monotonic)
    tokens: list[float] = field(default_factory=list)
    ended: float | None = None

    def milliseconds(self) -> list[float]:
        """From the request to the first event, and from each to the next."""
        times = [self.submitted, *self.tokens]
        return [round((after - before) * 1000, 3) for before, after in itertools.pairwise(times)]


class Answer:
    """An asynchronous iterator of pieces; the last one has a reason. Not for two listeners.

    Attributes:
        prompt: its ids. tokens: those of the answer so far. text: so far.
        stop: the stop string, or the token, that ended it.
        cached_tokens, queued: see ``protocol.Event``.
    """

    def __init__(
        self,
        stream: Stream,
        tokenizer: Any,
        prompt: Sequence[int],
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self._stream = stream
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens)
        self._stops = StopStrings(stop, include_stop)
        self._decoded = 0  # characters, with those that may begin a stop string
        self.prompt, self.tokens, self.text = list(prompt), list[int](), ""
        self.stop: str | int | None = None
        self.reason: Reason | None = None
        self.cached_tokens, self.queued = 0, 0.0
        self.times = Times()

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        """Raises EngineError if the engine fails."""
        if self.reason is not None:
            raise StopAsyncIteration
        try:
            event = await anext(self._stream)
        except StopAsyncIteration:  # ended from outside
            return self._end(Piece("", reason="abort"))
        return self._take(event)

    def abort(self) -> None:
        """End it and free what it holds; safe at any time."""
        if self.reason is None:
            self._stream.abort()

    def _take(self, event: Event) -> Piece:
        self.times.tokens.append(time.monotonic())
        self.tokens += event.tokens
        self.cached_tokens, self.queued = event.cached_tokens, event.queued
        # The end token has no text of its own unless special tokens are asked for.
        offsets, text = [], ""
        for token in event.tokens:
            offsets.append(self._decoded)
            decoded = self._detokenizer.add([token])
            self._decoded += len(decoded)
            text += decoded
        piece = Piece(self._stops.add(text), event.tokens, event.logprobs, tuple(offsets))
        if self._stops.found is None and event.finish is None:
            self.text += piece.text
            return piece
        return self._end(self._last(piece, event))

    def _last(self, piece: Piece, event: Event) -> Piece:
        """The piece with what was held back, and why it is the last."""
        text = piece.text
        if self._stops.found is None:
            text += self._stops.add(self._detokenizer.finish())
        if self._stops.found is not None:
            self.stop = self._stops.found
            self._stream.abort()
            return replace(piece, text=text, reason="stop_string")
        text += self._stops.finish()
        if event.finish == "stop":
            self.stop = event.tokens[-1]
            return replace(piece, text=text, reason="stop_token")
        return replace(piece, text=text, reason="length" if event.finish == "length" else "abort")

    def _end(self, piece: Piece) -> Piece:
        self.text += piece.text
        self.reason, self.times.ended = piece.reason, time.monotonic()
        return piece
