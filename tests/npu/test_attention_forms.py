"""Attention on the device over everything that ``Positions`` can describe, against its definition on the CPU.

The vendor's operators take sequences laid end to end: what is not of that form is to be composed, not bent into it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ascend_m1_hostnpu as hostnpu
from ascend_m1_ops import Positions, attention, attention_reference
from ascend_m1_ops.attention.ragged import find_ragged
from ascend_m1_ops.testing import rounding

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
FUSED = {True: "aclnnFlashAttentionVarLenScore", False: "aclnnFusedInferAttentionScoreV4"}
WINDOWS = st.none() | st.integers(1, 6)


def positions(
    query: list[list[int]],
    key: list[list[int]],
    documents: list[list[int]] | None = None,
    in_order: bool = False,
    gapless: bool = False,
) -> Positions:
    document = None if documents is None else torch.tensor(documents)
    return Positions(torch.tensor(query), torch.tensor(key), document, document, in_order, gapless)


@st.composite
def among_themselves(draw: Any) -> Positions:
    """Self-attention: documents in pieces or not, with padding and jumps or not."""
    batch, columns = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    packed, whole = draw(st.booleans()), draw(st.booleans())
    padded, jumping = draw(st.booleans()), draw(st.booleans())
    rows = []
    for _ in range(batch):
        documents = draw(st.lists(st.integers(0, 2 * columns if packed else 0), min_size=columns, max_size=columns))
        documents = sorted(documents) if whole else documents
        place, last, query, key = dict.fromkeys(documents, draw(st.integers(0, 2))), 0, [], []
        for document in documents:
            if padded and draw(st.booleans()):
                query.append(last)
                key.append(-1)
                continue
            last = place[document] + (draw(st.integers(0, 2)) if jumping else 0)
            place[document] = last + 1
            query.append(last)
            key.append(last)
        rows.append((query, key, documents))
    query, key, documents = (list(x) for x in zip(*rows, strict=True))
    gapless = whole and not padded and draw(st.booleans())
    return positions(query, key, documents if packed else None, in_order=True, gapless=gapless)


@st.composite
def over_a_cache(draw: Any) -> Positions:
    """Queries over the slots of a cache: as the model has them, then spoilt in up to two ways."""
    batch, columns, spare = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
    held = [columns + draw(st.integers(0, 6)) for _ in range(batch)]
    query = [list(range(length - columns, length)) for length in held]
    key = [draw(st.permutations([*range(n), *[-1] * (max(held) + spare - n)])) for n in held]
    documents: list[list[list[int]]] | None = None
    for _ in range(draw(st.integers(0, 2))):
        how, row = draw(st.sampled_from(["key", "query", "move", "document"])), draw(st.integers(0, batch - 1))
        if how == "key":
            key[row][draw(st.integers(0, len(key[row]) - 1))] = draw(st.integers(-1, max(held) + 2))
        elif how == "query":
            query[row][draw(st.integers(0, columns - 1))] = draw(st.integers(0, max(held) + 2))
        elif how == "move":
            shift = draw(st.integers(-3, 3))
            query[row] = [max(place + shift, 0) for place in query[row]]
        else:
            pick = st.integers(0, 1)
            documents = [[[draw(pick) for _ in line] for line in side] for side in (query, key)]
    sides = (None, None) if documents is None else (torch.tensor(side) for side in documents)
    return Positions(torch.tensor(query), torch.tensor(key), *sides)


def to_npu(who: Positions) -> Positions:
    tensors = (who.query, who.key, who.query_document, who.key_document)
    return Positions(*(None if x is None else x.to("npu") for x in tensors), who.in_order, who.gapless)  # type: ignore[arg-type]


def inputs(batch: int, who: Positions, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v; every query's result is weighed, padding among the queries with nothing."""
    shapes = ((who.query.shape[1], HEADS), (who.key.shape[1], KV_HEADS), (who.key.shape[1], KV_HEADS))
    return [torch.randn(batch, *shape, HEAD_DIM).to(dtype) for shape in shapes]


def counted(who: Positions) -> Tensor:
    """[batch, T, 1, 1]: which results mean something."""
    real = who.key >= 0 if who.in_order else torch.ones_like(who.query, dtype=torch.bool)
    return real[:, :, None, None]


def check(who: Positions, window: int | None, repeat: int = 1) -> None:
    """Inference in float16, results and gradients in float32; ``repeat``: rows of q for each row of positions."""
    who_there, real, batch = to_npu(who), counted(who), who.query.shape[0] * repeat
    q, k, v = inputs(batch, who, torch.float16)
    with torch.no_grad():
        out = attention(*(x.to("npu") for x in (q, k, v)), who_there, window=window).cpu()
        exact = attention_reference(q.double(), k.double(), v.double(), who, window=window)
    assert out.isfinite().all()
    size = v.abs().max().item()
    torch.testing.assert_close((out * real).double(), exact * real, rtol=0, atol=3 * rounding(out.dtype) * size)
    leaves = [x.float().to("npu").requires_grad_() for x in (q, k, v)]
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    flow = torch.randn(exact.shape)
    found = attention(*leaves, who_there, window=window)
    wanted = attention_reference(*wide, who, window=window)
    got = [found, *torch.autograd.grad(found, leaves, (flow * real).to("npu"))]
    want = [wanted, *torch.autograd.grad(wanted, wide, (flow * real).double())]
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        a, b = a.detach().cpu(), b.detach()
        assert a.isfinite().all()
        a, b = (a * real, b * real) if index == 0 else (a, b)
        # Sums of up to a dozen products, in float32.
        torch.testing.assert_close(a.double(), b, rtol=0, atol=60 * rounding(a.dtype) * max(1.0, b.abs().max().item()))


@given(who=among_themselves() | over_a_cache(), window=WINDOWS)
@settings(max_examples=150)
def test_every_form_equals_the_definition(who: Positions, window: int | None) -> None:
    check(who, window)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("in_order", [True, False])
def test_one_row_of_positions_serves_a_batch(in_order: bool, window: int | None) -> None:
    line = [list(range(4))]
    check(positions(line, line, in_order=in_order), window, repeat=3)


# As the model has them; the last is in_order.
FORMS: dict[str, Callable[[], Positions]] = {
    "decode": lambda: positions([[4], [2]], [[3, 4, 0, 1, 2], [0, 1, 2, -1, -1]]),
    "chunk over a ring": lambda: positions([[5, 6]], [[4, 5, 6, 3]]),
    "documents": lambda: positions([[0, 1, 0, 1]] * 2, [[0, 1, 0, 1]] * 2, [[0, 0, 5, 5], [0, 0, 1, 1]], in_order=True),
    "padding": lambda: positions([[0, 0, 0, 1]], [[-1, -1, 0, 1]], in_order=True),
}
COMPOSED: dict[str, Callable[[], Positions]] = {
    "documents out of order": lambda: positions([[0, 1, 0, 1]], [[0, 1, 0, 1]], [[0, 0, 1, 1]]),
    "documents over a cache": lambda: Positions(
        torch.tensor([[1, 2]]), torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1]]), torch.tensor([[0, 0, 1]])
    ),
    "a document in pieces": lambda: positions([[0, 0, 1]], [[0, 0, 1]], [[0, 1, 0]], in_order=True),
    "a jump": lambda: positions([[0, 1, 5]], [[0, 1, 5]], in_order=True),
    "a jump between keys": lambda: positions([[5, 6]], [[1, 3, 5, 6]]),
    "a jump between queries": lambda: positions([[2, 4]], [[0, 1, 2, 3, 4]]),
    "a key twice": lambda: positions([[1, 2]], [[0, 1, 1, 2]]),
    "no key of its own": lambda: positions([[3]], [[0, 1, 2]]),
    "no key of the first": lambda: positions([[1, 2]], [[2, -1, -1]]),
    "nothing to see": lambda: positions([[3], [3]], [[-1, -1], [2, 3]]),
    "nothing but padding": lambda: positions([[0, 0]], [[-1, -1]], in_order=True),
    "padding between queries": lambda: positions([[2, 2, 3]], [[0, 1, 2, 3]]),
}


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", FORMS)
def test_the_forms_of_the_model_are_fused(name: str, window: int | None) -> None:
    who = FORMS[name]()
    there, (q, k, v) = to_npu(who), inputs(len(who.query), who, torch.float16)
    for training in (False, True):
        with hostnpu.recording() as log:
            attention(*(x.to("npu").requires_grad_(training) for x in (q, k, v)), there, window=window)
        assert log.counts()[FUSED[training]] == 1
        assert not [launch for launch in log.counts() if "MatMul" in launch]
    check(who, window)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", COMPOSED)
def test_other_forms_are_composed(name: str, window: int | None) -> None:
    who = COMPOSED[name]()
    assert find_ragged(who, window, len(who.query)) is None
    check(who, window)


def test_documents_of_two_rows_are_two_sequences() -> None:
    """Whatever their numbers: 5 in the first row of four columns is not 0 in the second."""
    line = [[0, 1, 2, 3]] * 2
    found = find_ragged(positions(line, line, [[5] * 4, [0] * 4], in_order=True), None, 2)
    assert found is not None
    assert found.query_ends == found.key_ends == [4, 8]
