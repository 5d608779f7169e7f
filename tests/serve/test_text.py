"""Text as it comes: nothing cut, nothing lost, nothing after a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ascend_m1.cli.options import EMBEDDED
from ascend_m1_serve.text import Detokenizer, StopStrings, token_text

TOKENIZER = AutoTokenizer.from_pretrained(EMBEDDED)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(text=TEXTS, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=60))
def test_pieces_are_the_text(text: str, sizes: list[int]) -> None:
    """However many tokens come at once."""
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    detokenizer, pieces, start = Detokenizer(TOKENIZER), [], 0
    for size in [*sizes, len(ids)]:
        pieces.append(detokenizer.add(ids[start : start + size]))
        start += size
    pieces.append(detokenizer.finish())
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", ["哮喘", "naïve 🫁 lung", "€"])
def test_no_piece_has_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add([token]) for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text


def test_bytes_that_never_become_a_character_come_at_the_end() -> None:
    byte = TOKENIZER.convert_tokens_to_ids("<0xE4>")
    detokenizer = Detokenizer(TOKENIZER)
    assert detokenizer.add([byte]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_bytes_without_end_come_too() -> None:
    """What waits is bounded: an answer of nothing else neither stalls its stream nor slows down."""
    byte = TOKENIZER.convert_tokens_to_ids("<0xE4>")
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add([byte]) for _ in range(200)] + [detokenizer.finish()]
    assert len(pieces[0]) == 0 < len("".join(pieces[:100]))
    assert "".join(pieces) == "\ufffd" * 200
    assert detokenizer.add(TOKENIZER("哮喘 after", add_special_tokens=False)["input_ids"]).endswith(" after")


def test_special_tokens() -> None:
    end = TOKENIZER.eos_token_id
    assert Detokenizer(TOKENIZER).add([end]) == ""
    assert Detokenizer(TOKENIZER, skip_special_tokens=False).add([end]) == "</s>"


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    include=st.booleans(),
)
def test_an_answer_ends_at_the_first_stop_string(text: str, stops: list[str], sizes: list[int], include: bool) -> None:
    found = min(((text.find(stop), len(stop)) for stop in stops if stop in text), default=None)
    stopper, out, start = StopStrings(stops, include), "", 0
    for size in [*sizes, len(text)]:
        out += stopper.add(text[start : start + size])
        start += size
        if stopper.found is None:
            assert text.startswith(out)
    out += stopper.finish()
    if found is None:
        assert (out, stopper.found) == (text, None)
        return
    # A stop string that is complete earlier ends the answer, even if a longer one began before it.
    assert stopper.found in stops
    end = len(out) if include else len(out) + len(stopper.found)
    assert text[:end].endswith(stopper.found)
    assert not any(stop in text[: end - len(stopper.found)] for stop in stops if stop != stopper.found) or include


@pytest.mark.parametrize("token", ["<0xE4>", "▁the", "</s>"])
def test_single_tokens(token: str) -> None:
    index = TOKENIZER.convert_tokens_to_ids(token)
    text, data = token_text(TOKENIZER, index)
    assert bytes(data).decode("utf-8", "replace") == text
    assert {"<0xE4>": [0xE4], "▁the": list(b" the"), "</s>": list(b"</s>")}[token] == data
