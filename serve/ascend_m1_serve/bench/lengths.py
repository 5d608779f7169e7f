"""How long prompts and answers shall be: a number, a uniform range, or a lognormal distribution."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from ascend_m1.errors import InputError

LONGEST = 10_000_000  # beyond every context; keeps a slip of the keyboard from filling the memory


def draw_lengths(option: str, text: str, count: int, random: Generator) -> list[int]:
    """Lengths as ``text`` describes them, 1 or more each.

    Args:
        option: name of the option, for messages.
        text: ``128``; ``64:256``, every length in it, both ends too, equally likely; ``lognormal:MEAN:STD``, with mean
            and standard deviation of the lengths themselves, rounded, at least 1.

    Raises:
        InputError: the text is none of these, or a value cannot be used.
    """
    wrong = InputError(
        f"{option} {text!r}: give a length like 128, a range like 64:256 or lognormal:MEAN:STD, "
        f"of lengths from 1 to {LONGEST:,}"
    )
    kind, colon, rest = text.partition(":")
    try:
        if kind == "lognormal":
            mean, deviation = (float(part) for part in rest.split(":"))
        else:
            low, high = int(kind), int(rest if colon else kind)
    except ValueError:
        raise wrong from None
    if kind == "lognormal":
        if not (1 <= mean <= LONGEST and 0 <= deviation <= LONGEST):
            raise wrong
        variance = math.log1p((deviation / mean) ** 2)
        drawn = random.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), count)
        return [int(length) for length in np.clip(np.rint(drawn), 1, LONGEST)]
    if not 1 <= low <= high <= LONGEST:
        raise wrong
    return [int(length) for length in random.integers(low, high, count, endpoint=True)]
