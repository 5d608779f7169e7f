"""Which blocks of the cache are whose, and which still hold something that another request may use.

A block that nobody holds keeps its contents until it is taken for something else, the least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """Blocks 0 to ``count`` - 1, counted references, and the names of published contents.

    Published contents can be found by key. A chain of blocks can be continued only where the rest of a sequence's state
    was saved with its last block: such a block is a border.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._holders = [0] * count
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))  # least recently used first
        self._keys: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}
        self._borders: set[int] = set()

    @property
    def free(self) -> int:
        """Blocks that can be taken."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Blocks to write to; there must be so many free ones."""
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The longest chain of published blocks with these keys that ends at a border."""
        found: list[int] = []
        for key in keys:
            if key not in self._blocks:
                break
            found.append(self._blocks[key])
        while found and found[-1] not in self._borders:
            found.pop()
        return found

    def share(self, blocks: Sequence[int]) -> None:
        """Hold blocks that were found, too."""
        for block in blocks:
            self._free.pop(block, None)
            self._holders[block] += 1

    def unused(self, blocks: Sequence[int]) -> int:
        """How many of them nobody holds."""
        return sum(block in self._free for block in blocks)

    def release(self, blocks: Sequence[int]) -> None:
        """Hold them no more. The end of a chain is forgotten before its beginning, which more requests share."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None
                if block not in self._keys:
                    self._free.move_to_end(block, last=False)  # nothing is lost with it

    def publish(self, block: int, key: bytes, border: bool) -> None:
        """Name a full block's contents; the first block with such contents keeps the name."""
        self._blocks.setdefault(key, block)
        if self._blocks[key] == block:
            self._keys[block] = key
            if border:
                self._borders.add(block)

    def published(self, key: bytes) -> int | None:
        """The block of that name."""
        return self._blocks.get(key)

    def _forget(self, block: int) -> None:
        key = self._keys.pop(block, None)
        if key is not None:
            del self._blocks[key]
            self._borders.discard(block)
