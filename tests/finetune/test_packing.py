"""Packing loses nothing, overfills no row, and keeps labels inside their document."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.errors import InputError
from ascend_m1_finetune.packing import Document, PackedRows, document, pack_documents

LENGTH = 12


@st.composite
def documents(draw: st.DrawFn) -> list[Document]:
    found = []
    for _ in range(draw(st.integers(1, 25))):
        ids = draw(st.lists(st.integers(1, 90), min_size=1, max_size=LENGTH))
        answers = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        found.append(Document(tuple(ids), tuple(i if a else -100 for i, a in zip(ids, answers, strict=True))))
    return found


def unpack(packed: PackedRows) -> list[Document]:
    """The documents again, by the restarts of the positions; a padding tail is dropped."""
    found = []
    for ids, labels, positions in zip(packed.input_ids, packed.labels, packed.position_ids, strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for start, end in pairwise(starts):
            if ids[start] != 0:
                found.append(Document(tuple(ids[start:end].tolist()), tuple(labels[start:end].tolist())))
            else:
                assert (labels[start:end] == -100).all()
    return found


@given(documents())
def test_nothing_is_lost_and_labels_stay_inside(given_documents: list[Document]) -> None:
    packed = pack_documents(given_documents, LENGTH)
    assert all(t.shape == (len(packed), LENGTH) for t in (packed.input_ids, packed.labels, packed.position_ids))
    # The first token of a document is never a label: the token before it belongs to another document.
    expected = Counter((d.input_ids, (-100, *d.labels[1:])) for d in given_documents)
    assert Counter((d.input_ids, d.labels) for d in unpack(packed)) == expected
    assert (packed.labels[packed.position_ids == 0] == -100).all()
    trained = packed.labels != -100
    assert torch.equal(packed.labels[trained], packed.input_ids[trained])


@given(documents())
def test_seqlens_are_the_restarts(given_documents: list[Document]) -> None:
    packed = pack_documents(given_documents, LENGTH)
    assert (packed.seqlens[:, -1] == LENGTH).all()
    for ends, positions in zip(packed.seqlens.tolist(), packed.position_ids, strict=True):
        assert ends == sorted(ends)
        starts = (positions == 0).nonzero().flatten().tolist()
        assert sorted({0, *ends} - {LENGTH}) == starts


@given(documents())
def test_a_row_is_begun_only_where_no_other_has_room(given_documents: list[Document]) -> None:
    """No row could have taken a document that opened a later row."""
    packed = pack_documents(given_documents, LENGTH)
    used = (packed.input_ids != 0).sum(1).tolist()
    firsts = [
        int((positions[1:] == 0).nonzero()[0]) + 1 if (positions[1:] == 0).any() else LENGTH
        for positions in packed.position_ids
    ]
    # Rows only fill up: a row's first document did not fit earlier rows then, so two neighbours exceed one row.
    assert all(used[row - 1] + firsts[row] > LENGTH for row in range(1, len(packed)))


def test_document_learns_the_answers_only() -> None:
    made = document([((5, 6), True), ((7, 8), False), ((9, 2), True)])
    assert made == Document((5, 6, 7, 8, 9, 2), (-100, 6, -100, -100, 9, 2))


@pytest.mark.parametrize(
    ("items", "length", "message"),
    [
        ([], 4, "0 documents"),
        ([Document((), ())], 4, "document 0: 0 tokens"),
        ([Document((1,), (1,)), Document((1,) * 5, (1,) * 5)], 4, "document 1: 5 tokens do not fit a row of 4"),
        ([Document((1, 2), (1,))], 4, "2 tokens but 1 labels"),
    ],
)
def test_impossible_documents_are_named(items: list[Document], length: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack_documents(items, length)


def test_packed_loss_equals_the_documents_alone() -> None:
    """The model separates packed documents: the loss and its gradient are those of each document by itself."""
    torch.manual_seed(0)
    config = BaichuanM1Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_swa_attention_heads=4,
        num_swa_key_value_heads=2,
        sliding_window=3,
        rope_theta=10000.0,
        pad_token_id=0,
        initializer_range=0.3,
    )
    model = BaichuanM1ForCausalLM(config).double()
    items = [document([(range(3, 8), False), (range(20, 24), True)]), document([((9,), False), ((30, 31), True)])]
    packed = pack_documents(items, 16)
    assert len(packed) == 1
    loss = model(input_ids=packed.input_ids, position_ids=packed.position_ids, labels=packed.labels).loss
    loss.backward()
    gradient = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    alone = [
        model(input_ids=torch.tensor([d.input_ids]), labels=torch.tensor([d.labels])).loss
        * sum(label != -100 for label in d.labels)
        for d in items
    ]
    total = sum(alone) / sum(label != -100 for d in items for label in d.labels)
    total.backward()
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(gradient, model.model.embed_tokens.weight.grad)
    by_seqlens = model(input_ids=packed.input_ids, seqlens=packed.seqlens, labels=packed.labels).loss
    torch.testing.assert_close(by_seqlens, total)
