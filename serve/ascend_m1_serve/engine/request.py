"""One request, from its arrival to its last token."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from typing import Any

import numpy as np

from ascend_m1.paged import BLOCK_SIZE

from ..protocol import Sampling
from .grammar import Matcher


@dataclass(eq=False)
class Request:
    """What the engine knows of a request.

    Attributes:
        number: the order of arrival.
        ids: the prompt's tokens, then the generated ones.
        prompt: how many of them are the prompt.
        slot: of the adapter, 0: none.
        root: what the cache keys of its blocks begin with: blocks of different adapters differ.
        held: tokens in the cache.
        row, blocks: its place in the cache; no row while it waits or is swapped out.
        swapped: its share of the cache while it is swapped out (``store.Swapped``).
        cached: tokens of the prompt found in the prefix cache.
        arrived, started: seconds of a clock; started at its first forward.
        random: its own stream of numbers.
    """

    number: int
    ids: list[int]
    prompt: int
    sampling: Sampling
    priority: int
    arrived: float
    random: Random
    slot: int = 0
    root: bytes = b""
    matcher: Matcher | None = None
    held: int = 0
    row: int | None = None
    blocks: list[int] = field(default_factory=list)
    swapped: Any = None
    cached: int = 0
    started: float | None = None
    keys: list[bytes] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)

    @property
    def order(self) -> tuple[int, int]:
        """Who comes first, and who is preempted last."""
        return self.priority, self.number

    @property
    def missing(self) -> int:
        """Tokens not yet in the cache; 1 in a decode step."""
        return len(self.ids) - self.held

    @property
    def decoding(self) -> bool:
        """Whether all but the newest token, which was generated, are in the cache."""
        return self.missing == 1 and len(self.ids) > self.prompt

    @property
    def generated(self) -> int:
        return len(self.ids) - self.prompt

    def key(self, block: int) -> bytes:
        """Names the contents of its block of that index, with everything before it."""
        while len(self.keys) <= block:
            start = len(self.keys) * BLOCK_SIZE
            tokens = np.array(self.ids[start : start + BLOCK_SIZE], dtype=np.int32).tobytes()
            before = self.keys[-1] if self.keys else self.root
            self.keys.append(blake2b(before + tokens, digest_size=16).digest())
        return self.keys[block]


def blocks_for(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK_SIZE)
