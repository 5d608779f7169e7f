"""Lengths follow their distribution; what is none is refused in one line."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from ascend_m1.errors import InputError
from ascend_m1_serve.bench.lengths import draw_lengths


@given(st.integers(1, 10**6), st.integers(0, 50))
def test_fixed(length: int, count: int) -> None:
    assert draw_lengths("--input-len", str(length), count, default_rng(0)) == [length] * count


@given(st.integers(1, 1000), st.integers(0, 1000), st.integers(0, 2**32))
def test_range_holds_its_ends(low: int, width: int, seed: int) -> None:
    drawn = draw_lengths("--input-len", f"{low}:{low + width}", 100, default_rng(seed))
    assert all(low <= length <= low + width for length in drawn)


def test_range_is_uniform() -> None:
    drawn = draw_lengths("--input-len", "3:6", 8000, default_rng(1))
    # 2000 of each are expected; six standard deviations of a binomial count are 232
    assert all(abs(drawn.count(length) - 2000) < 232 for length in (3, 4, 5, 6))


def test_lognormal_has_this_mean_and_deviation() -> None:
    drawn = draw_lengths("--input-len", "lognormal:200:100", 20000, default_rng(2))
    assert statistics.mean(drawn) == pytest.approx(200, rel=0.02)
    assert statistics.stdev(drawn) == pytest.approx(100, rel=0.06)
    # the median of a lognormal distribution: mean / sqrt(1 + (deviation / mean)²)
    assert statistics.median(drawn) == pytest.approx(200 / math.sqrt(1.25), rel=0.02)


@given(st.floats(1, 100), st.floats(0, 1000))
def test_lognormal_is_one_or_more(mean: float, deviation: float) -> None:
    assert min(draw_lengths("--output-len", f"lognormal:{mean}:{deviation}", 50, default_rng(3))) >= 1


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "-1", "1.5", "x", "5:3", "0:3", "1:", "1:2:3", "normal:3:4", "99999999999", "lognormal"),
        *("lognormal:5", "lognormal:a:1", "lognormal:0:1", "lognormal:5:-1", "lognormal:nan:1", "lognormal:5:inf"),
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--output-len .*: give a length like 128") as raised:
        draw_lengths("--output-len", text, 3, default_rng(0))
    assert "\n" not in str(raised.value)
