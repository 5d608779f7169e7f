"""Decode steps of any size up to a largest, each by the smallest graph that holds it."""

from __future__ import annotations

from collections.abc import Sequence

from .decode import Decoder
from .graphs import Logits
from .inference import InferenceModel
from .paged import PagedCache
from .steps import Chunk


class BucketedDecoder:
    """Decoders for 1, 2, 4, 8, … and ``batch`` sequences over one model and one cache, used like one ``Decoder``.

    A graph is made when a step needs it first, or by ``warm_up`` with all others. The arguments and errors are those of
    ``Decoder``.
    """

    def __init__(
        self,
        model: InferenceModel,
        cache: PagedCache,
        batch: int,
        max_length: int,
        graph: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self.decoders = [Decoder(model, cache, size, max_length, graph, cache_dir) for size in bucket_sizes(batch)]

    def step(self, chunks: Sequence[Chunk]) -> Logits:
        """See ``Decoder.step``."""
        fitting = (decoder for decoder in self.decoders if decoder.batch >= len(chunks))
        return next(fitting, self.decoders[-1]).step(chunks)

    def warm_up(self) -> None:
        """Make all graphs now."""
        for decoder in self.decoders:
            decoder.warm_up()


def bucket_sizes(batch: int) -> list[int]:
    """Powers of two below ``batch``, and ``batch``."""
    return [*(2**power for power in range(max(batch - 1, 0).bit_length())), batch]
