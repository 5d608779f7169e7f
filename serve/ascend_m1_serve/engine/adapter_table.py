"""Which adapter is in which slot. Used in the event loop's thread; the weights are the engine's own thread's."""

from __future__ import annotations

from dataclasses import dataclass

from ascend_m1.errors import InputError


@dataclass
class Loaded:
    """One adapter.

    Attributes:
        slot: of the model. root: what cache keys of its requests begin with; another adapter in the same slot differs.
        users: requests that have not ended.
    """

    slot: int
    root: bytes
    users: int = 0


class AdapterTable:
    """Names and slots.

    Args:
        count: slots, numbered from 1.
    """

    def __init__(self, count: int) -> None:
        self.loaded: dict[str, Loaded] = {}
        self._free = list(range(count, 0, -1))
        self._count, self._ever = count, 0

    def reserve(self, name: str) -> Loaded:
        """A slot for a new adapter. Raises InputError if there is none or the name is taken."""
        if name in self.loaded:
            raise InputError(f"adapter {name!r} is loaded already: unload it first, or choose another name")
        if not self._count:
            raise InputError(
                f"adapter {name!r}: the server was started without room for adapters: give --max-adapters, "
                "or maxLoras in config.json"
            )
        if not self._free:
            raise InputError(
                f"adapter {name!r}: all {self._count} places are taken: unload one, or raise --max-adapters, "
                "or maxLoras in config.json"
            )
        self._ever += 1
        self.loaded[name] = Loaded(self._free.pop(), b"adapter %d" % self._ever)
        return self.loaded[name]

    def find(self, name: str) -> Loaded:
        """Raises InputError if there is no such adapter."""
        if name not in self.loaded:
            known = ", ".join(sorted(self.loaded)) or "none"
            raise InputError(f"adapter {name!r} is not loaded: loaded are: {known}")
        return self.loaded[name]

    def give_back(self, loaded: Loaded) -> None:
        """Its slot can be used again."""
        self._free.append(loaded.slot)
