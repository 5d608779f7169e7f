"""Which adapter is in which slot, for both engines. Used in the event loop's thread; the weights are the engine's."""

from __future__ import annotations

from dataclasses import dataclass

from ascend_m1.errors import InputError


@dataclass
class Loaded:
    """One adapter.

    Attributes:
        slot: of the model. number: of all that were ever loaded, from 1.
        users: requests that have not ended.
    """

    slot: int
    number: int
    users: int = 0

    @property
    def key(self) -> str:
        """What names its contents in caches: another adapter that comes after it, under its name, has another."""
        return f"adapter {self.number}"


class AdapterTable:
    """Names and slots. An adapter whose weights are not yet in its slot has both, and cannot be found.

    Args:
        count: slots, numbered from 1.
    """

    def __init__(self, count: int) -> None:
        self._loaded: dict[str, Loaded] = {}
        self._loading: set[str] = set()
        self._free = list(range(count, 0, -1))
        self._count, self._ever = count, 0

    def reserve(self, name: str) -> Loaded:
        """A slot for a new adapter, to commit or to cancel. Raises InputError if there is none or the name is taken."""
        if name in self._loaded:
            raise InputError(f"adapter {name!r} is loaded already: unload it first, or choose another name")
        if name in self._loading:
            raise InputError(f"adapter {name!r} is being loaded already: wait for it, or choose another name")
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
        self._loading.add(name)
        return Loaded(self._free.pop(), self._ever)

    def commit(self, name: str, loaded: Loaded) -> None:
        """Its weights are in its slot."""
        self._loading.remove(name)
        self._loaded[name] = loaded

    def cancel(self, name: str, loaded: Loaded) -> None:
        """It could not be loaded."""
        self._loading.remove(name)
        self.give_back(loaded)

    def names(self) -> list[str]:
        """Of those that can be found."""
        return sorted(self._loaded)

    def find(self, name: str) -> Loaded:
        """Raises InputError if there is no such adapter."""
        if name not in self._loaded:
            raise InputError(f"adapter {name!r} is not loaded: loaded are: {', '.join(self.names()) or 'none'}")
        return self._loaded[name]

    def remove(self, name: str) -> Loaded:
        """It cannot be found any more; its slot stays taken. Raises InputError if there is no such adapter."""
        loaded = self.find(name)
        del self._loaded[name]
        return loaded

    def give_back(self, loaded: Loaded) -> None:
        """Its slot can be used again."""
        self._free.append(loaded.slot)
