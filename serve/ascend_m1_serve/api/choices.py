"""More answers are generated than are asked for, and the likeliest are given: ``best_of``."""

from __future__ import annotations

from collections.abc import Sequence

from ascend_m1.errors import InputError

from ..answer import Answer, Piece


def candidates_of(count: int, best_of: int | None, stream: bool) -> int:
    """How many are generated for the ``count`` to be chosen from. Raises InputError."""
    candidates = count if best_of is None else best_of
    if candidates < count:
        raise InputError(f"best_of must not be less than n, which is {count}.")
    if candidates > count and stream:
        raise InputError(f"best_of must be equal to n, which is {count}, in a stream.")
    return candidates


def likeliest(
    answers: Sequence[Answer], pieces: Sequence[list[Piece]], candidates: int, count: int
) -> list[tuple[Answer, list[Piece]]]:
    """The ``count`` likeliest of each ``candidates`` that follow each other, with their pieces; as they are if all.

    By the sum of their tokens' log-probabilities, which the model gives before any option of sampling.
    """
    pairs = list(zip(answers, pieces, strict=True))
    if candidates == count:
        return pairs
    groups = [pairs[start : start + candidates] for start in range(0, len(pairs), candidates)]
    return [pair for group in groups for pair in sorted(group, key=lambda pair: -_likelihood(pair[1]))[:count]]


def _likelihood(pieces: Sequence[Piece]) -> float:
    return sum(chosen.logprob for piece in pieces for chosen, *_ in piece.logprobs)
