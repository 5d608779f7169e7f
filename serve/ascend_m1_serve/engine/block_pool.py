"""Which blocks of the cache are whose, and which still hold something that another request may use.

A block that nobody holds keeps its contents until it is taken for something else, the least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from ascend_m1.paged import BLOCK_SIZE


class BlockPool:
    """Blocks 0 to ``count`` - 1, counted references, and the names of published contents.

    Published contents can be found by key. A chain of blocks can be continued only where the rest of a sequence's state
    was kept with it: that of the convolution with its last block, and what window layers saw with its last ``window``
    tokens (``PrefixStore``).

    Args:
        count: blocks.
        window: tokens that a window layer sees; 0: there are no such layers.
    """

    def __init__(self, count: int, window: int = 0) -> None:
        self.count, self.window = count, window
        self._holders = [0] * count
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))  # least recently used first
        self._keys: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}
        self._states: set[int] = set()
        self._kept: dict[int, int] = {}

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
        """The longest chain of published blocks with these keys that can be continued."""
        found: list[int] = []
        for key in keys:
            if key not in self._blocks:
                break
            found.append(self._blocks[key])
        while found and not self._whole(found):
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

    def publish(self, block: int, key: bytes) -> None:
        """Name a full block's contents; the first block with such contents keeps the name."""
        if self._blocks.setdefault(key, block) == block:
            self._keys[block] = key

    def published(self, key: bytes) -> int | None:
        """The block of that name."""
        return self._blocks.get(key)

    def has_state(self, block: int) -> bool:
        """Whether the convolution's state after a published block was kept."""
        return block in self._states

    def keep_state(self, block: int) -> None:
        """It is kept now."""
        self._states.add(block)

    def needed(self, length: int) -> list[int]:
        """Of each block of a chain of that length, how many of its last tokens window layers see from its end on."""
        return [min(max(self.window - after * BLOCK_SIZE, 0), BLOCK_SIZE) for after in reversed(range(length))]

    def kept(self, block: int) -> int:
        """Of how many of a published block's last tokens the window layers' share was kept."""
        return self._kept.get(block, 0)

    def keep(self, block: int, tokens: int) -> None:
        """Of so many now."""
        self._kept[block] = tokens

    def _whole(self, chain: Sequence[int]) -> bool:
        if not self.has_state(chain[-1]):
            return False
        needed = self.needed(len(chain))
        return all(self.kept(block) >= tokens for block, tokens in zip(chain, needed, strict=True))

    def _forget(self, block: int) -> None:
        key = self._keys.pop(block, None)
        if key is not None:
            del self._blocks[key]
            self._states.discard(block)
            self._kept.pop(block, None)
