"""A conversation that keeps its cache: a turn computes only what the previous ones have not."""

from __future__ import annotations

from typing import Any

from .cache import M1Cache
from .generation import generate_text
from .prompts import Message, chat_ids, chat_text, room_for
from .sampling import SamplingOptions
from .text_stream import Emit


class Conversation:
    """Messages so far and the cache of their tokens.

    Attributes:
        messages: as the chat template takes them.
        reused: prompt tokens of the last turn that came from the cache.
    """

    def __init__(self, model: Any, tokenizer: Any, options: SamplingOptions, system: str | None = None) -> None:
        self.model, self.tokenizer, self.options, self.system = model, tokenizer, options, system
        self.reset()

    def reset(self) -> None:
        """Begin anew, with the same system message."""
        self.messages: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        self._forget()

    def _forget(self) -> None:
        self._cache = M1Cache(self.model.config)
        self._held: list[int] = []  # the tokens in the cache
        self.reused = 0

    def answer(self, text: str, emit: Emit) -> str:
        """Add the user's message, send the answer to ``emit`` as it comes and return it.

        Stopped by KeyboardInterrupt, the conversation keeps what was said so far.

        Raises:
            InputError: the message is empty or the conversation too long; it stays as it was.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = chat_ids(self.tokenizer, chat_text(self.tokenizer, messages))
        room_for(self.model.config, len(ids))
        if len(ids) <= len(self._held) or ids[: len(self._held)] != self._held:
            # Text can come back as other tokens than the model chose; then the cached ones are of no use.
            self._forget()
        self.reused = len(self._held)
        pieces: list[str] = []

        def send(piece: str) -> None:
            pieces.append(piece)
            emit(piece)

        try:
            new = generate_text(self.model, self.tokenizer, ids, self.options, send, self._cache)
        except BaseException:
            # A forward cut short may have overwritten a window's oldest slots.
            self._forget()
            if pieces:
                self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
            raise
        self._held = (ids + new)[: self._cache.columns]
        self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
        return "".join(pieces)
