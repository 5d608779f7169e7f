"""Generation with two graphs: the prompt in chunks, then one token at a time, each chosen on the host.

Knows neither cells nor files: ``model`` and ``mindir`` make ``Graphs``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor, int32
from transformers import GenerationConfig

from ..errors import InputError
from ..numpy_sampling import choose
from ..text_stream import Emit, TextStream
from .device import DTYPES

# Lengths that a prompt's chunks are padded to: one compilation each.
CHUNKS = (64, 256, 1024)
SMALLEST_CAPACITY = 256
State = tuple[Any, ...]


@dataclass(frozen=True)
class Graphs:
    """What runs a model.

    Attributes:
        prefill: (ids [1, length], start [1], n [1], *state) -> (logits [1, vocab], *state), see ``model.Prefill``.
        decode: (ids [B, 1], pos [B], *state) -> (logits [B, vocab], *state), see ``model.Decode``.
        lengths: of the chunks that prefill takes, ascending.
        capacity: tokens that the state has room for.
        state_shapes: of its tensors, for one sequence.
        dtype: its name.
    """

    prefill: Callable[..., Any]
    decode: Callable[..., Any]
    lengths: tuple[int, ...]
    capacity: int
    state_shapes: list[list[int]]
    dtype: str

    def empty(self) -> State:
        """The state of a sequence without tokens."""
        return tuple(Tensor(np.zeros(shape, np.float32), DTYPES[self.dtype]) for shape in self.state_shapes)


def capacity_for(context: int, tokens: int) -> int:
    """Slots for so many tokens: a power of two, so that few sizes are ever compiled, within the model's context."""
    capacity = SMALLEST_CAPACITY
    while capacity < tokens:
        capacity *= 2
    return min(capacity, context)


def chunk_lengths(capacity: int) -> tuple[int, ...]:
    """Those of ``CHUNKS`` that a prompt can need."""
    return tuple(length for length in CHUNKS if length < capacity * 2) or CHUNKS[:1]


def prefill(graphs: Graphs, ids: Sequence[int]) -> tuple[Any, State]:
    """Logits [vocab] after a prompt, and its state. Raises InputError if it is empty or longer than the capacity."""
    if not ids or len(ids) > graphs.capacity:
        raise InputError(f"the prompt has {len(ids)} tokens: these graphs take 1 to {graphs.capacity}")
    state, logits, start = graphs.empty(), None, 0
    while start < len(ids):
        rest = len(ids) - start
        length = next((length for length in graphs.lengths if length >= rest), graphs.lengths[-1])
        part = ids[start : start + length]
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(part)] = part
        logits, *new = graphs.prefill(Tensor(padded), _whole(start), _whole(len(part)), *state)
        state, start = tuple(new), start + len(part)
    assert logits is not None
    return logits.asnumpy()[0], state


def decode(graphs: Graphs, token: int, position: int, state: State) -> tuple[Any, State]:
    """Logits [vocab] after one more token, and the state with it.

    Raises:
        InputError: no slot is left; the graph would overwrite the first token's.
    """
    if not 0 <= position < graphs.capacity:
        raise InputError(f"position {position}: these graphs have {graphs.capacity} slots: export more, or shorten")
    logits, *new = graphs.decode(Tensor([[token]], int32), _whole(position), *state)
    return logits.asnumpy()[0], tuple(new)


def generate_ids(
    graphs: Graphs, ids: Sequence[int], config: GenerationConfig, seed: int | None = None
) -> Iterator[int]:
    """New tokens, the end token included.

    Args:
        config: from ``SamplingOptions.resolve``.
        seed: makes sampling repeatable.
    """
    random = np.random.default_rng(seed)
    seen = list(ids)
    ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id or ())
    logits, state = prefill(graphs, ids)
    for left in reversed(range(config.max_new_tokens)):
        token = choose(logits, seen, config, random)
        yield token
        if token in ends or not left:
            return
        logits, state = decode(graphs, token, len(seen), state)
        seen.append(token)


def generate_text(
    graphs: Graphs, tokenizer: Any, ids: Sequence[int], config: GenerationConfig, seed: int | None, emit: Emit
) -> list[int]:
    """Continue ``ids``, sending text to ``emit`` as it comes; returns the new ids."""
    stream, new = TextStream(tokenizer, emit), []
    for token in generate_ids(graphs, ids, config, seed):
        new.append(token)
        stream.take([token])
    stream.end()
    return new


def _whole(value: int) -> Tensor:
    return Tensor([value], int32)
