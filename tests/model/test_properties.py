"""Over random geometries: batch = single, chunked = whole, packed = separate, rollback = never having seen."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_m1 import BaichuanM1ForCausalLM, M1Cache

from .geometries import cuts, models, tokens

EXAMPLES = settings(max_examples=100)


@pytest.fixture(autouse=True, scope="module")
def _no_grad():
    with torch.inference_mode():
        yield


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # float64 on both sides, only the order of summation differs
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def whole(model: BaichuanM1ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    return model(ids[None], use_cache=False).logits[0]


def padded(draw: st.DrawFn) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Rows, and the batch and mask that hold them: padding before, after and between tokens."""
    rows = [tokens(draw) for _ in range(draw(st.integers(1, 3)))]
    width = max(map(len, rows)) + draw(st.integers(0, 3))
    batch, mask = torch.full((len(rows), width), 5), torch.zeros(len(rows), width, dtype=torch.int64)
    for row, ids in enumerate(rows):
        columns = torch.tensor(sorted(draw(st.permutations(range(width)))[: len(ids)]))
        batch[row, columns], mask[row, columns] = ids, 1
    return rows, batch, mask


@EXAMPLES
@given(st.data(), models(), st.booleans())
def test_batch_equals_single(data: st.DataObject, model: BaichuanM1ForCausalLM, with_cache: bool) -> None:
    """Padding on either side of a row, also both, and holes between tokens."""
    rows, batch, mask = data.draw(st.composite(padded)())
    result = model(batch, attention_mask=mask, use_cache=with_cache).logits
    for row, ids in enumerate(rows):
        same(result[row][mask[row].bool()], whole(model, ids))


@EXAMPLES
@given(st.data(), models(), st.integers(0, 6), st.booleans())
def test_chunked_equals_whole(data: st.DataObject, model: BaichuanM1ForCausalLM, rollback: int, static: bool) -> None:
    ids = data.draw(st.composite(tokens)())
    cache = M1Cache(model.config, max_length=len(ids) if static else None, rollback=rollback)
    parts = [model(part[None], cache=cache).logits[0] for part in ids.split(cuts(data.draw, len(ids)))]
    same(torch.cat(parts), whole(model, ids))


@EXAMPLES
@given(st.data(), models(), st.integers(0, 6))
def test_chunked_padded_batch_equals_single(data: st.DataObject, model: BaichuanM1ForCausalLM, rollback: int) -> None:
    """Padding anywhere, the batch fed in chunks: rows of the cache then differ in length."""
    rows, batch, mask = data.draw(st.composite(padded)())
    cache, end, parts = M1Cache(model.config, rollback=rollback), 0, []
    for chunk in batch.split(cuts(data.draw, batch.shape[1]), dim=1):
        end += chunk.shape[1]
        parts.append(model(chunk, attention_mask=mask[:, :end], cache=cache).logits)
    result = torch.cat(parts, dim=1)
    for row, ids in enumerate(rows):
        same(result[row][mask[row].bool()], whole(model, ids))


@EXAMPLES
@given(st.data(), models())
def test_packed_equals_separate(data: st.DataObject, model: BaichuanM1ForCausalLM) -> None:
    documents = [data.draw(st.composite(tokens)(high=9)) for _ in range(data.draw(st.integers(1, 5)))]
    ends = torch.tensor([len(ids) for ids in documents]).cumsum(0)
    result = model(torch.cat(documents)[None], seqlens=ends[None]).logits[0]
    same(result, torch.cat([whole(model, ids) for ids in documents]))


@EXAMPLES
@given(st.data(), models())
def test_packed_batch_of_rows(data: st.DataObject, model: BaichuanM1ForCausalLM) -> None:
    """Rows with different numbers of documents; seqlens padded with the row's length, as published."""
    width = data.draw(st.integers(2, 16))
    sizes = [cuts(data.draw, width) for _ in range(2)]
    most = max(map(len, sizes))
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 36), min_size=2 * width, max_size=2 * width))).view(2, width)
    ends = torch.stack([torch.tensor(row + [0] * (most - len(row))).cumsum(0) for row in sizes])
    result = model(ids, seqlens=ends).logits
    for row in range(2):
        same(result[row], torch.cat([whole(model, part) for part in ids[row].split(sizes[row])]))


@EXAMPLES
@given(st.data(), models(), st.integers(0, 8))
def test_rollback_equals_never_having_seen(data: st.DataObject, model: BaichuanM1ForCausalLM, rollback: int) -> None:
    """A wrong guess is taken back, twice in a row, then the true continuation follows in chunks."""
    ids = data.draw(st.composite(tokens)(low=2))
    known = data.draw(st.integers(1, len(ids) - 1))
    cache = M1Cache(model.config, rollback=rollback)
    for part in ids[:known].split(cuts(data.draw, known)):
        model(part[None], cache=cache)
    for _ in range(2):
        wrong = data.draw(st.integers(0, rollback))
        if wrong:
            guess = torch.tensor(data.draw(st.lists(st.integers(0, 36), min_size=wrong, max_size=wrong)))
            for part in guess.split(cuts(data.draw, wrong)):
                model(part[None], cache=cache)
            cache.crop(-wrong)
    rest = [model(part[None], cache=cache).logits[0] for part in ids[known:].split(cuts(data.draw, len(ids) - known))]
    same(torch.cat(rest), whole(model, ids)[known:])


@EXAMPLES
@given(st.data(), models())
def test_rollback_of_padded_batch(data: st.DataObject, model: BaichuanM1ForCausalLM) -> None:
    """The columns taken back hold padding in some rows, tokens in others; a row may fall back to nothing."""
    rows, batch, mask = data.draw(st.composite(padded)())
    known = data.draw(st.integers(1, batch.shape[1]))
    wrong = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=3 * len(rows), max_size=3 * len(rows))))
    guess = torch.cat([mask[:, :known], wrong.view(len(rows), 3)], dim=1)
    cache = M1Cache(model.config, rollback=3)
    first = model(batch[:, :known], attention_mask=mask[:, :known], cache=cache).logits
    model(torch.full((len(rows), 3), 7), attention_mask=guess, cache=cache)
    cache.crop(-3)
    if known < batch.shape[1]:
        first = torch.cat([first, model(batch[:, known:], attention_mask=mask, cache=cache).logits], dim=1)
    for row, ids in enumerate(rows):
        same(first[row][mask[row].bool()], whole(model, ids))


@EXAMPLES
@given(st.data(), models())
def test_select_and_copy(data: st.DataObject, model: BaichuanM1ForCausalLM) -> None:
    """Rows of a cache can be dropped, repeated and reordered; a copy lives on its own."""
    length = data.draw(st.integers(1, 12))
    ids = torch.randint(0, 37, (3, length + 2))
    cache = M1Cache(model.config)
    model(ids[:, :length], cache=cache)
    twin = copy.deepcopy(cache)
    order = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4)))
    cache.batch_select_indices(order)
    result = model(ids[order, length:], cache=cache).logits
    model(torch.zeros(3, 1, dtype=torch.int64), cache=twin)  # must not touch the other
    expected = torch.stack([whole(model, row)[length:] for row in ids])
    same(result, expected[order])
    twin.crop(-1)
    same(model(ids[:, length:], cache=twin).logits, expected)


@EXAMPLES
@given(st.data(), models())
def test_interleaved_generations_never_touch(data: st.DataObject, model: BaichuanM1ForCausalLM) -> None:
    first, second = (data.draw(st.composite(tokens)(low=6, high=6)) for _ in range(2))
    caches, parts = (M1Cache(model.config), M1Cache(model.config)), ([], [])
    for step in range(6):
        for ids, cache, out in zip((first, second), caches, parts, strict=True):
            out.append(model(ids[None, step : step + 1], cache=cache).logits[0, 0])
    same(torch.stack(parts[0]), whole(model, first))
    same(torch.stack(parts[1]), whole(model, second))
